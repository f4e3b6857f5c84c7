"""Flags that vLLM has for `vllm serve` and `switchyard serve` has not: what to do instead.

Owns that table. Flags that mean the same here are aliases, in the tables of flags.
"""

from __future__ import annotations

from collections.abc import Mapping

_IS_ON = "that is how it is here; leave it out"
_NO_OFFLOAD = "nothing is moved to the host's memory; leave it out"
_ONE_FOLDER = "MODEL is one folder or Hub id, with its tokenizer and configs"
_OF_THE_HUB = "huggingface_hub reads it from the environment (HF_TOKEN, HF_HOME)"
_PIPELINE = "layers are not spread over ranks; --tp spreads heads and experts, --dp requests"
_NO_LORA = "adapters are not served; merge it into the model folder"
_NO_DRAFTS = "there is no speculative decoding; leave it out"
_TEXT_ONLY = "only text is served; leave it out"
_GENERATES = "the model generates; there are no other tasks"

VLLM_FLAGS: Mapping[str, str] = {
    "-tp": "--tp sets it",
    "-dp": "--dp sets it",
    "-pp": _PIPELINE,
    "--pipeline-parallel-size": _PIPELINE,
    "--enable-expert-parallel": "experts are spread over all ranks, unless --ep is 1",
    "--all2all-backend": "--moe-ep-backend sets it",
    "--distributed-executor-backend": "for several machines see docs/operations.md",
    "--enable-prefix-caching": "it is on, unless --no-prefix-cache is given",
    "--no-enable-prefix-caching": "--no-prefix-cache turns it off",
    "--enable-chunked-prefill": f"{_IS_ON}; --max-num-batched-tokens bounds a step",
    "--enforce-eager": "--cuda-graphs off does so",
    "--compilation-config": "--cuda-graphs is all there is to set",
    "--num-gpu-blocks-override": "--num-blocks sets it",
    "-q": "--quantization sets it",
    "--swap-space": _NO_OFFLOAD,
    "--cpu-offload-gb": _NO_OFFLOAD,
    "--trust-remote-code": "no code of a model folder is run; leave it out",
    "--tokenizer": _ONE_FOLDER,
    "--tokenizer-mode": _ONE_FOLDER,
    "--hf-config-path": _ONE_FOLDER,
    "--revision": f"{_ONE_FOLDER}; of another revision download the folder",
    "--download-dir": _OF_THE_HUB,
    "--hf-token": _OF_THE_HUB,
    "--generation-config": "generation_config.json of the folder is used",
    "--override-generation-config": "edit generation_config.json of the folder",
    "--rope-scaling": "scaled rotary embeddings are not built",
    "--task": _GENERATES,
    "--runner": _GENERATES,
    "--enable-lora": _NO_LORA,
    "--lora-modules": _NO_LORA,
    "--speculative-config": _NO_DRAFTS,
    "--speculative-model": _NO_DRAFTS,
    "--limit-mm-per-prompt": _TEXT_ONLY,
    "--enable-auto-tool-choice": _IS_ON,
    "--guided-decoding-backend": "llguidance is the only one; leave it out",
    "--structured-outputs-config": "llguidance is the only one; leave it out",
    "--max-logprobs": "20 are the most, always",
    "--scheduling-policy": "priorities of requests are heeded; leave it out",
    "--ssl-certfile": "--tls-cert sets it",
    "--ssl-keyfile": "--tls-key sets it",
    "--ssl-ca-certs": "--tls-client-ca sets it",
    "--allowed-origins": "--cors-origin sets it",
    "--disable-log-requests": "--no-request-log does so",
    "--no-enable-log-requests": "--no-request-log does so",
    "--enable-log-requests": "it is on, unless --no-request-log is given",
    "--disable-log-stats": "there is no such log; figures are in /metrics and `switchyard top`",
    "--otlp-traces-endpoint": "--otlp-endpoint sets it",
}
