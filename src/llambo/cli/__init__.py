"""The entry points: each puts configuration, a door and an interface together. The only place that knows them all."""
