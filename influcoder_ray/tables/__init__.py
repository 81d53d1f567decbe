"""What lies on disk: places, data files, units of work, Arrow schemas, fingerprints, manifests."""
