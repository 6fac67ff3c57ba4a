"""What a run is given, what it depends on, what it tells."""
