"""How graphs are opened in ONNX Runtime. No torch."""

import threading
from pathlib import Path
from typing import Any

from telescopic.engine.host import processor
from telescopic.extras import needs

_ONCE = threading.Lock()
_ARENA: list[bool] = []  # whether all sessions share one


def runtime() -> Any:
    """ONNX Runtime, imported when it is first used.

    Raises:
        ImportError: if it is not installed.
    """
    with needs("onnx"):
        import onnxruntime
    return onnxruntime


def open_session(
    graph: Path | bytes,
    threads: int,
    *,
    optimised: bool = False,
    weights: Path | None = None,
    keep_as: Path | None = None,
) -> Any:
    """One graph, run by so many threads, on an arena for feature maps that all segments share.

    Args:
        graph: its file, or what would stand there.
        threads: within it.
        optimised: whether it was written by `keep_as` on such a machine.
        weights: folder with the file of weights; by default the graph's own.
        keep_as: where to write it as optimised for this machine, with a file of weights beside.
    """
    _share_arena()
    onnxruntime = runtime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4  # errors are raised, and those of strangers would fill a log
    entries = {
        "session.use_env_allocators": "1",
        "session.use_device_allocator_for_initializers": "1",  # weights stay; in the arena they would leave holes
        "session.force_spinning_stop": "1",  # threads of the last segment must not take processors from the next
        # Without these instructions sums of int8 products may overflow on x86; with them the option only costs time.
        "session.x64quantprecision": "0" if "vnni" in processor() else "1",
    }
    if optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if keep_as is not None:
        options.optimized_model_filepath = str(keep_as)
        entries |= {
            "session.optimized_model_external_initializers_file_name": f"{keep_as.name}.bin",
            "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
        }
    if weights is not None:
        entries["session.model_external_initializers_file_folder_path"] = str(weights)
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    source = graph if isinstance(graph, bytes) else str(graph)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def _share_arena() -> None:
    with _ONCE:
        if not _ARENA:
            onnxruntime = runtime()
            info = onnxruntime.OrtMemoryInfo(
                "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
            )
            onnxruntime.create_and_register_allocator(info, None)
            _ARENA.append(True)
