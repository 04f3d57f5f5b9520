"""Writes docs/agent.schema.json, the JSON schema of a job's section `agent`.

python -m scripts.agent_schema
"""

import json
from pathlib import Path

from rollout.agents.section import AgentConfig

FILE = Path(__file__).parent.parent / "docs" / "agent.schema.json"


def schema() -> str:
    """The schema as the file holds it."""
    return json.dumps(AgentConfig.model_json_schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(schema())
