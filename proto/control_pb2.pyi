from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Versions(_message.Message):
    __slots__ = ("protocol", "farshore", "torch", "python")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    FARSHORE_FIELD_NUMBER: _ClassVar[int]
    TORCH_FIELD_NUMBER: _ClassVar[int]
    PYTHON_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    farshore: str
    torch: str
    python: str
    def __init__(self, protocol: _Optional[int] = ..., farshore: _Optional[str] = ..., torch: _Optional[str] = ..., python: _Optional[str] = ...) -> None: ...

class NodeProfile(_message.Message):
    __slots__ = ("cores", "memory_bytes", "os", "machine", "matmul_gflops", "onnxruntime", "torch", "accelerators", "packages", "install", "methods")
    CORES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    OS_FIELD_NUMBER: _ClassVar[int]
    MACHINE_FIELD_NUMBER: _ClassVar[int]
    MATMUL_GFLOPS_FIELD_NUMBER: _ClassVar[int]
    ONNXRUNTIME_FIELD_NUMBER: _ClassVar[int]
    TORCH_FIELD_NUMBER: _ClassVar[int]
    ACCELERATORS_FIELD_NUMBER: _ClassVar[int]
    PACKAGES_FIELD_NUMBER: _ClassVar[int]
    INSTALL_FIELD_NUMBER: _ClassVar[int]
    METHODS_FIELD_NUMBER: _ClassVar[int]
    cores: int
    memory_bytes: int
    os: str
    machine: str
    matmul_gflops: float
    onnxruntime: str
    torch: str
    accelerators: _containers.RepeatedCompositeFieldContainer[Accelerator]
    packages: _containers.RepeatedScalarFieldContainer[str]
    install: str
    methods: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, cores: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., os: _Optional[str] = ..., machine: _Optional[str] = ..., matmul_gflops: _Optional[float] = ..., onnxruntime: _Optional[str] = ..., torch: _Optional[str] = ..., accelerators: _Optional[_Iterable[_Union[Accelerator, _Mapping]]] = ..., packages: _Optional[_Iterable[str]] = ..., install: _Optional[str] = ..., methods: _Optional[_Iterable[str]] = ...) -> None: ...

class Accelerator(_message.Message):
    __slots__ = ("kind", "name", "memory_bytes")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    kind: str
    name: str
    memory_bytes: int
    def __init__(self, kind: _Optional[str] = ..., name: _Optional[str] = ..., memory_bytes: _Optional[int] = ...) -> None: ...

class JoinRequest(_message.Message):
    __slots__ = ("token_secret", "name", "versions", "attempt")
    TOKEN_SECRET_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    token_secret: str
    name: str
    versions: Versions
    attempt: str
    def __init__(self, token_secret: _Optional[str] = ..., name: _Optional[str] = ..., versions: _Optional[_Union[Versions, _Mapping]] = ..., attempt: _Optional[str] = ...) -> None: ...

class JoinReply(_message.Message):
    __slots__ = ("node_key", "name", "server_id", "versions", "secret")
    NODE_KEY_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SERVER_ID_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    node_key: str
    name: str
    server_id: str
    versions: Versions
    secret: str
    def __init__(self, node_key: _Optional[str] = ..., name: _Optional[str] = ..., server_id: _Optional[str] = ..., versions: _Optional[_Union[Versions, _Mapping]] = ..., secret: _Optional[str] = ...) -> None: ...

class NodeEvent(_message.Message):
    __slots__ = ("hello", "heartbeat", "exited", "log", "leave", "open", "stored", "answer")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    EXITED_FIELD_NUMBER: _ClassVar[int]
    LOG_FIELD_NUMBER: _ClassVar[int]
    LEAVE_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    heartbeat: Heartbeat
    exited: ProgramExited
    log: LogLines
    leave: Leave
    open: OpenRun
    stored: SecretStored
    answer: Challenge
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., exited: _Optional[_Union[ProgramExited, _Mapping]] = ..., log: _Optional[_Union[LogLines, _Mapping]] = ..., leave: _Optional[_Union[Leave, _Mapping]] = ..., open: _Optional[_Union[OpenRun, _Mapping]] = ..., stored: _Optional[_Union[SecretStored, _Mapping]] = ..., answer: _Optional[_Union[Challenge, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("versions", "profile", "data", "shard_index", "shard_count", "running", "own_runs_only", "labels", "held_runs", "instance")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    SHARD_INDEX_FIELD_NUMBER: _ClassVar[int]
    SHARD_COUNT_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    OWN_RUNS_ONLY_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    HELD_RUNS_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    versions: Versions
    profile: NodeProfile
    data: _containers.RepeatedScalarFieldContainer[str]
    shard_index: int
    shard_count: int
    running: _containers.RepeatedCompositeFieldContainer[RunningProgram]
    own_runs_only: bool
    labels: _containers.ScalarMap[str, str]
    held_runs: _containers.RepeatedScalarFieldContainer[str]
    instance: str
    def __init__(self, versions: _Optional[_Union[Versions, _Mapping]] = ..., profile: _Optional[_Union[NodeProfile, _Mapping]] = ..., data: _Optional[_Iterable[str]] = ..., shard_index: _Optional[int] = ..., shard_count: _Optional[int] = ..., running: _Optional[_Iterable[_Union[RunningProgram, _Mapping]]] = ..., own_runs_only: bool = ..., labels: _Optional[_Mapping[str, str]] = ..., held_runs: _Optional[_Iterable[str]] = ..., instance: _Optional[str] = ...) -> None: ...

class Challenge(_message.Message):
    __slots__ = ("nonce",)
    NONCE_FIELD_NUMBER: _ClassVar[int]
    nonce: str
    def __init__(self, nonce: _Optional[str] = ...) -> None: ...

class SecretStored(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RunningProgram(_message.Message):
    __slots__ = ("run_id", "epoch")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    epoch: int
    def __init__(self, run_id: _Optional[str] = ..., epoch: _Optional[int] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("cpu_percent", "memory_used_bytes")
    CPU_PERCENT_FIELD_NUMBER: _ClassVar[int]
    MEMORY_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    cpu_percent: float
    memory_used_bytes: int
    def __init__(self, cpu_percent: _Optional[float] = ..., memory_used_bytes: _Optional[int] = ...) -> None: ...

class ProgramExited(_message.Message):
    __slots__ = ("run_id", "epoch", "exit_code", "error", "traceback")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    TRACEBACK_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    epoch: int
    exit_code: int
    error: str
    traceback: str
    def __init__(self, run_id: _Optional[str] = ..., epoch: _Optional[int] = ..., exit_code: _Optional[int] = ..., error: _Optional[str] = ..., traceback: _Optional[str] = ...) -> None: ...

class LogLines(_message.Message):
    __slots__ = ("run_id", "lines")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    LINES_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    lines: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, run_id: _Optional[str] = ..., lines: _Optional[_Iterable[str]] = ...) -> None: ...

class Leave(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class OpenRun(_message.Message):
    __slots__ = ("workload", "config_json", "seed")
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    CONFIG_JSON_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    workload: str
    config_json: str
    seed: int
    def __init__(self, workload: _Optional[str] = ..., config_json: _Optional[str] = ..., seed: _Optional[int] = ...) -> None: ...

class NodeCommand(_message.Message):
    __slots__ = ("welcome", "start", "stop", "goodbye", "opened", "refused", "finished", "challenge")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    GOODBYE_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    CHALLENGE_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    start: StartProgram
    stop: StopProgram
    goodbye: Goodbye
    opened: RunOpened
    refused: RunRefused
    finished: RunsFinished
    challenge: Challenge
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., start: _Optional[_Union[StartProgram, _Mapping]] = ..., stop: _Optional[_Union[StopProgram, _Mapping]] = ..., goodbye: _Optional[_Union[Goodbye, _Mapping]] = ..., opened: _Optional[_Union[RunOpened, _Mapping]] = ..., refused: _Optional[_Union[RunRefused, _Mapping]] = ..., finished: _Optional[_Union[RunsFinished, _Mapping]] = ..., challenge: _Optional[_Union[Challenge, _Mapping]] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("server_id", "heartbeat_seconds", "finished_runs", "secret")
    SERVER_ID_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_RUNS_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    server_id: str
    heartbeat_seconds: float
    finished_runs: _containers.RepeatedScalarFieldContainer[str]
    secret: str
    def __init__(self, server_id: _Optional[str] = ..., heartbeat_seconds: _Optional[float] = ..., finished_runs: _Optional[_Iterable[str]] = ..., secret: _Optional[str] = ...) -> None: ...

class RunsFinished(_message.Message):
    __slots__ = ("run_ids",)
    RUN_IDS_FIELD_NUMBER: _ClassVar[int]
    run_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, run_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class StartProgram(_message.Message):
    __slots__ = ("run_id", "workload", "config_json", "seed", "epoch", "nodes", "ticket", "data_port", "shard_index", "shard_count", "role")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    CONFIG_JSON_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    DATA_PORT_FIELD_NUMBER: _ClassVar[int]
    SHARD_INDEX_FIELD_NUMBER: _ClassVar[int]
    SHARD_COUNT_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    workload: str
    config_json: str
    seed: int
    epoch: int
    nodes: _containers.RepeatedScalarFieldContainer[str]
    ticket: str
    data_port: int
    shard_index: int
    shard_count: int
    role: str
    def __init__(self, run_id: _Optional[str] = ..., workload: _Optional[str] = ..., config_json: _Optional[str] = ..., seed: _Optional[int] = ..., epoch: _Optional[int] = ..., nodes: _Optional[_Iterable[str]] = ..., ticket: _Optional[str] = ..., data_port: _Optional[int] = ..., shard_index: _Optional[int] = ..., shard_count: _Optional[int] = ..., role: _Optional[str] = ...) -> None: ...

class StopProgram(_message.Message):
    __slots__ = ("run_id", "epoch", "reason")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    epoch: int
    reason: str
    def __init__(self, run_id: _Optional[str] = ..., epoch: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class RunOpened(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    def __init__(self, run_id: _Optional[str] = ...) -> None: ...

class RunRefused(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class Goodbye(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class NodeInfo(_message.Message):
    __slots__ = ("name", "state", "reason", "profile", "versions", "data", "last_seen", "runs", "cpu_percent", "memory_used_bytes", "labels", "address")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    CPU_PERCENT_FIELD_NUMBER: _ClassVar[int]
    MEMORY_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: str
    reason: str
    profile: NodeProfile
    versions: Versions
    data: _containers.RepeatedScalarFieldContainer[str]
    last_seen: float
    runs: _containers.RepeatedScalarFieldContainer[str]
    cpu_percent: float
    memory_used_bytes: int
    labels: _containers.ScalarMap[str, str]
    address: str
    def __init__(self, name: _Optional[str] = ..., state: _Optional[str] = ..., reason: _Optional[str] = ..., profile: _Optional[_Union[NodeProfile, _Mapping]] = ..., versions: _Optional[_Union[Versions, _Mapping]] = ..., data: _Optional[_Iterable[str]] = ..., last_seen: _Optional[float] = ..., runs: _Optional[_Iterable[str]] = ..., cpu_percent: _Optional[float] = ..., memory_used_bytes: _Optional[int] = ..., labels: _Optional[_Mapping[str, str]] = ..., address: _Optional[str] = ...) -> None: ...

class RunInfo(_message.Message):
    __slots__ = ("id", "workload", "state", "reason", "created", "started", "ended", "nodes", "epoch", "config_json", "result_json", "directory", "done", "total", "progress_json", "roles")
    class RolesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    CONFIG_JSON_FIELD_NUMBER: _ClassVar[int]
    RESULT_JSON_FIELD_NUMBER: _ClassVar[int]
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_JSON_FIELD_NUMBER: _ClassVar[int]
    ROLES_FIELD_NUMBER: _ClassVar[int]
    id: str
    workload: str
    state: str
    reason: str
    created: float
    started: float
    ended: float
    nodes: _containers.RepeatedScalarFieldContainer[str]
    epoch: int
    config_json: str
    result_json: str
    directory: str
    done: int
    total: int
    progress_json: str
    roles: _containers.ScalarMap[str, str]
    def __init__(self, id: _Optional[str] = ..., workload: _Optional[str] = ..., state: _Optional[str] = ..., reason: _Optional[str] = ..., created: _Optional[float] = ..., started: _Optional[float] = ..., ended: _Optional[float] = ..., nodes: _Optional[_Iterable[str]] = ..., epoch: _Optional[int] = ..., config_json: _Optional[str] = ..., result_json: _Optional[str] = ..., directory: _Optional[str] = ..., done: _Optional[int] = ..., total: _Optional[int] = ..., progress_json: _Optional[str] = ..., roles: _Optional[_Mapping[str, str]] = ...) -> None: ...

class SubmitRequest(_message.Message):
    __slots__ = ("workload", "config_json", "node_count", "nodes", "seed", "data", "roles", "wait_seconds")
    class DataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    CONFIG_JSON_FIELD_NUMBER: _ClassVar[int]
    NODE_COUNT_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    ROLES_FIELD_NUMBER: _ClassVar[int]
    WAIT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    workload: str
    config_json: str
    node_count: int
    nodes: _containers.RepeatedScalarFieldContainer[str]
    seed: int
    data: _containers.ScalarMap[str, str]
    roles: _containers.RepeatedCompositeFieldContainer[RoleRequest]
    wait_seconds: float
    def __init__(self, workload: _Optional[str] = ..., config_json: _Optional[str] = ..., node_count: _Optional[int] = ..., nodes: _Optional[_Iterable[str]] = ..., seed: _Optional[int] = ..., data: _Optional[_Mapping[str, str]] = ..., roles: _Optional[_Iterable[_Union[RoleRequest, _Mapping]]] = ..., wait_seconds: _Optional[float] = ...) -> None: ...

class RoleRequest(_message.Message):
    __slots__ = ("role", "least", "most", "nodes")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    LEAST_FIELD_NUMBER: _ClassVar[int]
    MOST_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    role: str
    least: int
    most: int
    nodes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, role: _Optional[str] = ..., least: _Optional[int] = ..., most: _Optional[int] = ..., nodes: _Optional[_Iterable[str]] = ...) -> None: ...

class RunRef(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class ResumeRequest(_message.Message):
    __slots__ = ("id", "from_start", "from_step")
    ID_FIELD_NUMBER: _ClassVar[int]
    FROM_START_FIELD_NUMBER: _ClassVar[int]
    FROM_STEP_FIELD_NUMBER: _ClassVar[int]
    id: str
    from_start: bool
    from_step: int
    def __init__(self, id: _Optional[str] = ..., from_start: bool = ..., from_step: _Optional[int] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ("page_token", "limit", "ids")
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    page_token: str
    limit: int
    ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, page_token: _Optional[str] = ..., limit: _Optional[int] = ..., ids: _Optional[_Iterable[str]] = ...) -> None: ...

class NodeList(_message.Message):
    __slots__ = ("nodes", "next_page_token")
    NODES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedCompositeFieldContainer[NodeInfo]
    next_page_token: str
    def __init__(self, nodes: _Optional[_Iterable[_Union[NodeInfo, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class RunList(_message.Message):
    __slots__ = ("runs", "next_page_token")
    RUNS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[RunInfo]
    next_page_token: str
    def __init__(self, runs: _Optional[_Iterable[_Union[RunInfo, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class FollowRequest(_message.Message):
    __slots__ = ("id", "follow", "logs")
    ID_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    LOGS_FIELD_NUMBER: _ClassVar[int]
    id: str
    follow: bool
    logs: bool
    def __init__(self, id: _Optional[str] = ..., follow: bool = ..., logs: bool = ...) -> None: ...

class RunEvent(_message.Message):
    __slots__ = ("run", "log", "changed")
    RUN_FIELD_NUMBER: _ClassVar[int]
    LOG_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    run: RunInfo
    log: _containers.RepeatedScalarFieldContainer[str]
    changed: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, run: _Optional[_Union[RunInfo, _Mapping]] = ..., log: _Optional[_Iterable[str]] = ..., changed: _Optional[_Iterable[str]] = ...) -> None: ...

class TokenRequest(_message.Message):
    __slots__ = ("valid_seconds", "uses")
    VALID_SECONDS_FIELD_NUMBER: _ClassVar[int]
    USES_FIELD_NUMBER: _ClassVar[int]
    valid_seconds: float
    uses: int
    def __init__(self, valid_seconds: _Optional[float] = ..., uses: _Optional[int] = ...) -> None: ...

class TokenReply(_message.Message):
    __slots__ = ("token", "id", "expires", "addresses")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    token: str
    id: str
    expires: float
    addresses: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, token: _Optional[str] = ..., id: _Optional[str] = ..., expires: _Optional[float] = ..., addresses: _Optional[_Iterable[str]] = ...) -> None: ...

class RevokeRequest(_message.Message):
    __slots__ = ("token_id", "node")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    token_id: str
    node: str
    def __init__(self, token_id: _Optional[str] = ..., node: _Optional[str] = ...) -> None: ...

class TrustRequest(_message.Message):
    __slots__ = ("node",)
    NODE_FIELD_NUMBER: _ClassVar[int]
    node: str
    def __init__(self, node: _Optional[str] = ...) -> None: ...

class Empty(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
