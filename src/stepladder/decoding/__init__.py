"""Exact speculative chains over local models: drafting, verification, draft length, caches. Needs the extra [torch]."""
