"""The rules of the game: no I/O, no clock, no asyncio. Everything here can run ten thousand times in a test."""
