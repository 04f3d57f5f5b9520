"""Properties are searched without a clock, and leave nothing behind in the checkout."""

from hypothesis import settings

settings.register_profile("rollout", deadline=None, database=None)
settings.load_profile("rollout")
