"""Numbers of a body that sampling has under the same name. The service checks their ranges."""

from __future__ import annotations

from collections.abc import Sequence

from frontend.api.http.validation import RequestModel
from frontend.processing.sampling_params import FLOAT32_MAX, check_range
from switchyard.v1 import inference_pb2 as pb


def set_numbers(body: RequestModel, names: Sequence[str], sampling: pb.SamplingParams) -> None:
    """Sets those that are not None.

    Raises:
        RequestError: one does not fit the message.
    """
    for name in names:
        value = getattr(body, name)
        if value is not None:
            if abs(value) > FLOAT32_MAX:  # it would be infinite in the message
                check_range(name, value)
            setattr(sampling, name, value)
