"""Programs that are not ours, played as episodes: their model calls come through the gateway and become turns.

The conf says how one is started (`section`), a launcher runs it (`program`, `container`, `remote`), a captured episode
writes its prompts and keeps its calls (`captured`), and `playing` is what the episode loop sees of it all.
"""
