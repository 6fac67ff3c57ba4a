"""From the bytes of a request to the JSON of its answer."""
