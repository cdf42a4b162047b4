"""VSB-Open: the safety set that ships, its renderer and its tasks."""
