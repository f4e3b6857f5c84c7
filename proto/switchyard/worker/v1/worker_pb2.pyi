from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("protocol", "version", "rank", "world_size", "local_world_size", "tensor_parallel_size", "data_parallel_size", "expert_parallel_size", "moe_ep_backend", "architecture", "vocab_size", "max_model_len", "max_batch_size", "max_num_batched_tokens", "block_size", "num_blocks", "eos_token_ids", "device", "dtype", "weights_sha256", "bytes_read", "startup_seconds", "bytes_per_second", "flops_per_second", "graph_batch_sizes", "timed_tokens", "timed_seconds", "quantization", "kv_cache_dtype", "group_windows", "keeps_states", "num_kept_states", "state_interval", "state_bytes")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    WORLD_SIZE_FIELD_NUMBER: _ClassVar[int]
    LOCAL_WORLD_SIZE_FIELD_NUMBER: _ClassVar[int]
    TENSOR_PARALLEL_SIZE_FIELD_NUMBER: _ClassVar[int]
    DATA_PARALLEL_SIZE_FIELD_NUMBER: _ClassVar[int]
    EXPERT_PARALLEL_SIZE_FIELD_NUMBER: _ClassVar[int]
    MOE_EP_BACKEND_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_LEN_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_BATCHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    EOS_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_SHA256_FIELD_NUMBER: _ClassVar[int]
    BYTES_READ_FIELD_NUMBER: _ClassVar[int]
    STARTUP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    FLOPS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    GRAPH_BATCH_SIZES_FIELD_NUMBER: _ClassVar[int]
    TIMED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TIMED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    QUANTIZATION_FIELD_NUMBER: _ClassVar[int]
    KV_CACHE_DTYPE_FIELD_NUMBER: _ClassVar[int]
    GROUP_WINDOWS_FIELD_NUMBER: _ClassVar[int]
    KEEPS_STATES_FIELD_NUMBER: _ClassVar[int]
    NUM_KEPT_STATES_FIELD_NUMBER: _ClassVar[int]
    STATE_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    STATE_BYTES_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    version: str
    rank: int
    world_size: int
    local_world_size: int
    tensor_parallel_size: int
    data_parallel_size: int
    expert_parallel_size: int
    moe_ep_backend: str
    architecture: str
    vocab_size: int
    max_model_len: int
    max_batch_size: int
    max_num_batched_tokens: int
    block_size: int
    num_blocks: int
    eos_token_ids: _containers.RepeatedScalarFieldContainer[int]
    device: str
    dtype: str
    weights_sha256: str
    bytes_read: int
    startup_seconds: float
    bytes_per_second: float
    flops_per_second: float
    graph_batch_sizes: _containers.RepeatedScalarFieldContainer[int]
    timed_tokens: int
    timed_seconds: float
    quantization: str
    kv_cache_dtype: str
    group_windows: _containers.RepeatedScalarFieldContainer[int]
    keeps_states: bool
    num_kept_states: int
    state_interval: int
    state_bytes: int
    def __init__(self, protocol: _Optional[int] = ..., version: _Optional[str] = ..., rank: _Optional[int] = ..., world_size: _Optional[int] = ..., local_world_size: _Optional[int] = ..., tensor_parallel_size: _Optional[int] = ..., data_parallel_size: _Optional[int] = ..., expert_parallel_size: _Optional[int] = ..., moe_ep_backend: _Optional[str] = ..., architecture: _Optional[str] = ..., vocab_size: _Optional[int] = ..., max_model_len: _Optional[int] = ..., max_batch_size: _Optional[int] = ..., max_num_batched_tokens: _Optional[int] = ..., block_size: _Optional[int] = ..., num_blocks: _Optional[int] = ..., eos_token_ids: _Optional[_Iterable[int]] = ..., device: _Optional[str] = ..., dtype: _Optional[str] = ..., weights_sha256: _Optional[str] = ..., bytes_read: _Optional[int] = ..., startup_seconds: _Optional[float] = ..., bytes_per_second: _Optional[float] = ..., flops_per_second: _Optional[float] = ..., graph_batch_sizes: _Optional[_Iterable[int]] = ..., timed_tokens: _Optional[int] = ..., timed_seconds: _Optional[float] = ..., quantization: _Optional[str] = ..., kv_cache_dtype: _Optional[str] = ..., group_windows: _Optional[_Iterable[int]] = ..., keeps_states: _Optional[bool] = ..., num_kept_states: _Optional[int] = ..., state_interval: _Optional[int] = ..., state_bytes: _Optional[int] = ...) -> None: ...

class ExecuteRequest(_message.Message):
    __slots__ = ("hello", "step", "goodbye")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    GOODBYE_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    step: StepRequest
    goodbye: Goodbye
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., step: _Optional[_Union[StepRequest, _Mapping]] = ..., goodbye: _Optional[_Union[Goodbye, _Mapping]] = ...) -> None: ...

class ExecuteResponse(_message.Message):
    __slots__ = ("welcome", "result")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    result: StepResult
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., result: _Optional[_Union[StepResult, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("epoch", "protocol")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    protocol: int
    def __init__(self, epoch: _Optional[int] = ..., protocol: _Optional[int] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("epoch", "num_steps")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    num_steps: int
    def __init__(self, epoch: _Optional[int] = ..., num_steps: _Optional[int] = ...) -> None: ...

class Goodbye(_message.Message):
    __slots__ = ("end_rank",)
    END_RANK_FIELD_NUMBER: _ClassVar[int]
    end_rank: bool
    def __init__(self, end_rank: _Optional[bool] = ...) -> None: ...

class NewSequence(_message.Message):
    __slots__ = ("slot", "temperature", "top_p", "top_k", "min_p", "seed", "sample_index", "suppressed_token_ids", "suppress_until", "repetition_penalty", "presence_penalty", "frequency_penalty", "bias_token_ids", "bias_values", "allowed_token_ids", "banned_token_ids", "num_logprobs", "prompt_logprobs", "history_token_ids", "num_prompt_tokens", "from_state")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_INDEX_FIELD_NUMBER: _ClassVar[int]
    SUPPRESSED_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SUPPRESS_UNTIL_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    BIAS_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    BIAS_VALUES_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    BANNED_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    NUM_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    HISTORY_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    NUM_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FROM_STATE_FIELD_NUMBER: _ClassVar[int]
    slot: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int
    sample_index: int
    suppressed_token_ids: _containers.RepeatedScalarFieldContainer[int]
    suppress_until: int
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    bias_token_ids: _containers.RepeatedScalarFieldContainer[int]
    bias_values: _containers.RepeatedScalarFieldContainer[float]
    allowed_token_ids: _containers.RepeatedScalarFieldContainer[int]
    banned_token_ids: _containers.RepeatedScalarFieldContainer[int]
    num_logprobs: int
    prompt_logprobs: bool
    history_token_ids: _containers.RepeatedScalarFieldContainer[int]
    num_prompt_tokens: int
    from_state: int
    def __init__(self, slot: _Optional[int] = ..., temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., top_k: _Optional[int] = ..., min_p: _Optional[float] = ..., seed: _Optional[int] = ..., sample_index: _Optional[int] = ..., suppressed_token_ids: _Optional[_Iterable[int]] = ..., suppress_until: _Optional[int] = ..., repetition_penalty: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., bias_token_ids: _Optional[_Iterable[int]] = ..., bias_values: _Optional[_Iterable[float]] = ..., allowed_token_ids: _Optional[_Iterable[int]] = ..., banned_token_ids: _Optional[_Iterable[int]] = ..., num_logprobs: _Optional[int] = ..., prompt_logprobs: _Optional[bool] = ..., history_token_ids: _Optional[_Iterable[int]] = ..., num_prompt_tokens: _Optional[int] = ..., from_state: _Optional[int] = ...) -> None: ...

class StepRequest(_message.Message):
    __slots__ = ("step_id", "new_sequences", "slots", "positions", "num_decodes", "num_tokens", "token_ids", "draws", "num_new_blocks", "new_blocks", "max_replica_tokens", "decode_only", "masked_draws", "draw_masks", "mask_triggers", "keep")
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    NEW_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    NUM_DECODES_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    DRAWS_FIELD_NUMBER: _ClassVar[int]
    NUM_NEW_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NEW_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    MAX_REPLICA_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DECODE_ONLY_FIELD_NUMBER: _ClassVar[int]
    MASKED_DRAWS_FIELD_NUMBER: _ClassVar[int]
    DRAW_MASKS_FIELD_NUMBER: _ClassVar[int]
    MASK_TRIGGERS_FIELD_NUMBER: _ClassVar[int]
    KEEP_FIELD_NUMBER: _ClassVar[int]
    step_id: int
    new_sequences: _containers.RepeatedCompositeFieldContainer[NewSequence]
    slots: _containers.RepeatedScalarFieldContainer[int]
    positions: _containers.RepeatedScalarFieldContainer[int]
    num_decodes: int
    num_tokens: _containers.RepeatedScalarFieldContainer[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    draws: _containers.RepeatedScalarFieldContainer[bool]
    num_new_blocks: _containers.RepeatedScalarFieldContainer[int]
    new_blocks: _containers.RepeatedScalarFieldContainer[int]
    max_replica_tokens: int
    decode_only: bool
    masked_draws: _containers.RepeatedScalarFieldContainer[int]
    draw_masks: bytes
    mask_triggers: _containers.RepeatedScalarFieldContainer[int]
    keep: KeptStates
    def __init__(self, step_id: _Optional[int] = ..., new_sequences: _Optional[_Iterable[_Union[NewSequence, _Mapping]]] = ..., slots: _Optional[_Iterable[int]] = ..., positions: _Optional[_Iterable[int]] = ..., num_decodes: _Optional[int] = ..., num_tokens: _Optional[_Iterable[int]] = ..., token_ids: _Optional[_Iterable[int]] = ..., draws: _Optional[_Iterable[bool]] = ..., num_new_blocks: _Optional[_Iterable[int]] = ..., new_blocks: _Optional[_Iterable[int]] = ..., max_replica_tokens: _Optional[int] = ..., decode_only: _Optional[bool] = ..., masked_draws: _Optional[_Iterable[int]] = ..., draw_masks: _Optional[bytes] = ..., mask_triggers: _Optional[_Iterable[int]] = ..., keep: _Optional[_Union[KeptStates, _Mapping]] = ...) -> None: ...

class KeptStates(_message.Message):
    __slots__ = ("rows", "positions", "states")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    rows: _containers.RepeatedScalarFieldContainer[int]
    positions: _containers.RepeatedScalarFieldContainer[int]
    states: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, rows: _Optional[_Iterable[int]] = ..., positions: _Optional[_Iterable[int]] = ..., states: _Optional[_Iterable[int]] = ...) -> None: ...

class StepResult(_message.Message):
    __slots__ = ("step_id", "token_ids", "device_seconds", "floor_seconds", "idle_seconds", "bytes_moved", "flops", "logprobs", "top_token_ids", "top_logprobs", "prompt_logprobs", "prompt_top_token_ids", "prompt_top_logprobs")
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    FLOOR_SECONDS_FIELD_NUMBER: _ClassVar[int]
    IDLE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    BYTES_MOVED_FIELD_NUMBER: _ClassVar[int]
    FLOPS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    TOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    step_id: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    device_seconds: float
    floor_seconds: float
    idle_seconds: float
    bytes_moved: float
    flops: float
    logprobs: _containers.RepeatedScalarFieldContainer[float]
    top_token_ids: _containers.RepeatedScalarFieldContainer[int]
    top_logprobs: _containers.RepeatedScalarFieldContainer[float]
    prompt_logprobs: _containers.RepeatedScalarFieldContainer[float]
    prompt_top_token_ids: _containers.RepeatedScalarFieldContainer[int]
    prompt_top_logprobs: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, step_id: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., device_seconds: _Optional[float] = ..., floor_seconds: _Optional[float] = ..., idle_seconds: _Optional[float] = ..., bytes_moved: _Optional[float] = ..., flops: _Optional[float] = ..., logprobs: _Optional[_Iterable[float]] = ..., top_token_ids: _Optional[_Iterable[int]] = ..., top_logprobs: _Optional[_Iterable[float]] = ..., prompt_logprobs: _Optional[_Iterable[float]] = ..., prompt_top_token_ids: _Optional[_Iterable[int]] = ..., prompt_top_logprobs: _Optional[_Iterable[float]] = ...) -> None: ...

class GetExpertLoadRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetExpertLoadResponse(_message.Message):
    __slots__ = ("layers", "num_experts", "tokens")
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    NUM_EXPERTS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    layers: _containers.RepeatedScalarFieldContainer[int]
    num_experts: int
    tokens: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, layers: _Optional[_Iterable[int]] = ..., num_experts: _Optional[int] = ..., tokens: _Optional[_Iterable[int]] = ...) -> None: ...
