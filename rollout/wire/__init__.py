"""The wire formats that other people's agents speak: OpenAI Chat Completions and Responses, Anthropic Messages."""
