"""What an agent may be told to do beside sampling and calling tools: the parts that the episode loop is given."""
