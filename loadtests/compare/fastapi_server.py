"""FastAPI as its tutorial has it: one process, and a function that blocks runs in the thread pool."""

import sys

import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool

from loadtests.compare import recogniser

app = FastAPI()
recognise = recogniser.from_environment()


@app.post("/predict")
async def predict(request: Request) -> dict[str, object]:
    """The objects in the JPEG that is the body."""
    return {"results": await run_in_threadpool(recognise, await request.body())}


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), log_level="warning")
