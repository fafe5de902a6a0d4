"""Ends the build of an image that lacks a part: every compiled library must load with the runtime libraries alone."""

import importlib
import shutil
import sys

from agmm.kernels import native as passes
from agmm.packed import native as packed
from pipelines.data import native_pixels

for module in ("ffcv", "flask_wtf", "mlflow.server.auth", "psycopg2", "ray.dashboard.dashboard", "timm", "torchvision"):
    importlib.import_module(module)
missing = [why for part in (passes, packed, native_pixels) if (why := part.why_not())]
missing += [f"no {program}" for program in ("agmm", "mlflow", "ray", "weed") if shutil.which(program) is None]
missing += [f"{program} is here" for program in ("cc", "gcc", "g++", "ld", "pip") if shutil.which(program)]
sys.exit("; ".join(missing) or None)
