"""A gateway in front of a model: the three APIs over HTTP. Pure asyncio; `actors.gateway` puts it on a cluster."""
