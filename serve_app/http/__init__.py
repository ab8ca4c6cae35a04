"""The HTTP side: routes, bodies, options, responses, errors and API keys, and the ingress, which calls the graph.

Start with `ingress.py`, then read `api.py` and `predict.py`. Only the ingress knows the service behind the routes. The
other modules know it as a `RecognitionService`, and must not know Ray, engines or where weights come from.
"""
