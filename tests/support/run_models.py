"""Runs the models of a folder on the ONNX Runtime of an environment that has nothing but numpy beside it.

    python run_models.py FOLDER ENDING PROVIDER ANSWERS

NAME<ENDING> is given each array of FOLDER/NAME.npz as its only input; its outputs become ANSWERS/NAME.npz, under the
same keys. Why a model did not run, or not on the provider alone, becomes ANSWERS/NAME.error. Prints the version.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

ALWAYS_THERE = "CPUExecutionProvider"


def opened(model, provider, profile):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if provider != ALWAYS_THERE:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    return onnxruntime.InferenceSession(str(model), options, providers=[provider])


def answers_of(model, provider, profile):
    session = opened(model, provider, profile)
    (given,) = session.get_inputs()
    with np.load(model.with_suffix(".npz")) as inputs:
        outputs = {key: session.run(None, {given.name: inputs[key]})[0] for key in inputs}
    if provider != ALWAYS_THERE:
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        ran_on = {event["args"]["provider"] for event in events if event["name"].endswith("_kernel_time")}
        if ran_on != {provider}:
            raise RuntimeError(f"ran on {sorted(ran_on)}")
    return outputs


def main(folder, ending, provider, answers):
    for model in sorted(Path(folder).glob(f"*{ending}")):
        to = Path(answers) / model.stem
        try:
            np.savez(to.with_name(f"{to.name}.npz"), **answers_of(model, provider, to))
        except Exception as error:
            to.with_name(f"{to.name}.error").write_text(str(error), encoding="utf-8")
    print(onnxruntime.__version__)


main(*sys.argv[1:])
