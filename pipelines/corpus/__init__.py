"""The default music corpus: composed and orchestrated pieces, captioned, rendered and listed in a manifest."""
