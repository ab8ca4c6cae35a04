"""`make compare`: this service beside FastAPI, LitServe and mosec, on the same photos and weights."""
