"""A guard and a criterion that hoplon finds by their entry points."""
