"""Serving: every request runs at the length factor that its length asks for."""
