"""The cache of volumes: fitted to a contract, compressed block by block, read whole or in windows."""
