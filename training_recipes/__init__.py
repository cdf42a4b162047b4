"""Recipes that train alarm-token models: data, rewards, and the scripts that use them."""
