"""The look-up door: online features over HTTP, in the form of Feast's feature server."""
