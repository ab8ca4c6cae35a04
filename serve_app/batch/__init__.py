"""The batch job, `python -m serve_app batch`: the stages of the service over a folder or bucket, on Ray Data.

Start with `job.py`. `plan.py` fixes what a run does, so that one that was stopped goes on; `stages.py` and
`pipeline.py` do it. Must not know HTTP's routes and bodies. Only the command line imports this package.
"""
