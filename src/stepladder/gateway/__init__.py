"""The OpenAI-compatible door: wire shapes, streaming, limits. No decisions are taken here."""
