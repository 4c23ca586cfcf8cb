"""Job settings: YAML at the edge, frozen values inside."""
