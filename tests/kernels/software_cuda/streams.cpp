// Streams are queues. Nothing on them runs before someone waits; then all of them take turns, in a random order.
#include "streams.h"

#include <algorithm>
#include <chrono>
#include <deque>
#include <thread>

#include "device.h"

using namespace software;

struct CUstream_st {
  std::deque<std::unique_ptr<Work>> queue;
  cudaGraph_t recording = nullptr;
  cudaGraphNode_t last = nullptr;
  bool invalidated = false;
  std::thread::id owner;
  bool alive = true;
};

struct CUevent_st {
  bool alive = true, recorded = false;
  cudaStream_t stream = nullptr;
  int pending = 0;
  std::chrono::steady_clock::time_point at;
};

namespace software {
namespace {

// What is destroyed stays where it is, so that its handle is never another's.
std::vector<std::unique_ptr<CUstream_st>> streams;
std::vector<std::unique_ptr<CUevent_st>> events;
CUstream_st* standard = nullptr;
long most_at_once = 0;

class Single : public Work {
 public:
  explicit Single(Action action) : action_(std::move(action)) {}
  bool step() override {
    action_();
    return true;
  }

 private:
  Action action_;
};

// Null is the default stream.
CUstream_st* find(cudaStream_t stream) {
  if (!stream) {
    if (!standard) {
      streams.push_back(std::make_unique<CUstream_st>());
      standard = streams.back().get();
    }
    return standard;
  }
  for (const auto& each : streams) {
    if (each.get() == stream && each->alive) return stream;
  }
  return nullptr;
}

CUevent_st* find(cudaEvent_t event) {
  for (const auto& each : events) {
    if (each.get() == event && each->alive) return event;
  }
  return nullptr;
}

void step(CUstream_st* stream) {
  // On its own: it may take the last reference to something.
  if (!stream->queue.front()->step()) return;
  const std::unique_ptr<Work> over = std::move(stream->queue.front());
  stream->queue.pop_front();
}

// One piece of work of any stream; false if there is none, or the device does not go on.
bool step_any() {
  if (device().fault) return false;
  std::vector<CUstream_st*> busy;
  for (const auto& each : streams) {
    if (!each->queue.empty()) busy.push_back(each.get());
  }
  if (busy.empty()) return false;
  step(busy[device().random() % busy.size()]);
  return true;
}

template <typename Done>
cudaError_t wait(Done done) {
  for (;;) {
    const Lock lock(device().mutex);
    if (device().fault) {
      for (const auto& each : streams) each->queue.clear();
      return failed(device().fault);
    }
    if (done() || !step_any()) return device().fault ? failed(device().fault) : cudaSuccess;
  }
}

// The kinds of capture we use forbid this to the thread that captures.
cudaError_t forbidden_in_capture(CUstream_st* stream) {
  if (!stream->recording) return cudaSuccess;
  stream->invalidated = true;
  return failed(cudaErrorStreamCaptureUnsupported);
}

void run_ahead() {
  while (device().eagerness > 0 && (device().random() >> 11) * 0x1p-53 < device().eagerness && step_any()) {
  }
}

}  // namespace

std::unique_ptr<Work> work_of(Action action) { return std::make_unique<Single>(std::move(action)); }

cudaError_t put(cudaStream_t handle, Piece piece) {
  CUstream_st* stream = find(handle);
  if (!stream) return failed(cudaErrorInvalidResourceHandle);
  if (!stream->recording) return put(handle, work_of(std::move(piece.action)));
  if (stream->invalidated) return failed(cudaErrorStreamCaptureInvalidated);
  stream->last = add_node(stream->recording, piece.type, &stream->last, stream->last ? 1 : 0);
  set_action(stream->last, std::move(piece.action));
  return cudaSuccess;
}

cudaError_t put(cudaStream_t handle, std::unique_ptr<Work> work) {
  CUstream_st* stream = find(handle);
  if (!stream) return failed(cudaErrorInvalidResourceHandle);
  if (const cudaError_t error = forbidden_in_capture(stream)) return error;
  stream->queue.push_back(std::move(work));
  run_ahead();
  return cudaSuccess;
}

cudaError_t kernel_of(const void* function, dim3 grid, dim3 block, void** arguments, Action* action) {
  for (const auto& [entry, kernel] : kernels()) {
    if (entry != function) continue;
    auto launch = std::make_shared<Launch>(entry, kernel, grid, block, arguments);
    if (const cudaError_t error = launch->problem()) return failed(error);
    *action = [launch] { launch->run(); };
    return cudaSuccess;
  }
  return failed(cudaErrorInvalidDeviceFunction);
}

cudaError_t expect_no_capture(cudaStream_t handle) {
  CUstream_st* stream = find(handle);
  return stream ? forbidden_in_capture(stream) : failed(cudaErrorInvalidResourceHandle);
}

// Handles stay taken, so that who kept one of an older device cannot meet another's.
void forget_streams() {
  for (const auto& each : streams) {
    each->queue.clear();
    each->alive = false;
    each->recording = nullptr;
  }
  for (const auto& each : events) each->alive = false;
  standard = nullptr;
  most_at_once = 0;
}

std::map<std::string, long> streams_state() {
  std::map<std::string, long> state{
      {"most_streams_at_once", most_at_once}, {"streams", 0}, {"pending", 0}, {"events", 0}};
  for (const auto& each : streams) {
    state["streams"] += each->alive && each.get() != standard;
    state["pending"] += (long)each->queue.size();
  }
  for (const auto& each : events) state["events"] += each->alive;
  return state;
}

}  // namespace software

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned int) {
  const Lock lock(device().mutex);
  if (const cudaError_t error = enter("cudaStreamCreateWithFlags")) return error;
  streams.push_back(std::make_unique<CUstream_st>());
  *stream = streams.back().get();
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t handle) {
  const Lock lock(device().mutex);
  if (const cudaError_t error = enter("cudaStreamDestroy")) return error;
  CUstream_st* stream = handle ? find(handle) : nullptr;
  if (!stream) return failed(cudaErrorInvalidResourceHandle);
  if (!stream->queue.empty()) set_misuse("a stream was destroyed with work on it");
  if (stream->recording) set_misuse("a stream was destroyed while it was being captured");
  stream->alive = false;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  CUstream_st* stream;
  {
    const Lock lock(device().mutex);
    if (const cudaError_t error = enter("cudaStreamSynchronize")) return error;
    stream = find(handle);
    if (!stream) return failed(cudaErrorInvalidResourceHandle);
    if (const cudaError_t error = forbidden_in_capture(stream)) return error;
    long busy = 0;
    for (const auto& each : streams) busy += !each->queue.empty();
    most_at_once = std::max(most_at_once, busy);
  }
  return wait([=] { return stream->queue.empty(); });
}

// Each question gives the device a moment, so that who only asks comes to an end.
cudaError_t cudaStreamQuery(cudaStream_t handle) {
  const Lock lock(device().mutex);
  if (const cudaError_t error = enter("cudaStreamQuery")) return error;
  CUstream_st* stream = find(handle);
  if (!stream) return failed(cudaErrorInvalidResourceHandle);
  if (const cudaError_t error = forbidden_in_capture(stream)) return error;
  if (stream->queue.empty()) return cudaSuccess;
  step_any();
  if (device().fault) return failed(device().fault);
  return failed(cudaErrorNotReady);
}

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode) {
  const Lock lock(device().mutex);
  if (const cudaError_t error = enter("cudaStreamBeginCapture")) return error;
  CUstream_st* stream = handle ? find(handle) : nullptr;
  if (!stream || stream->recording) return failed(cudaErrorInvalidValue);
  if (!stream->queue.empty()) set_misuse("a stream was captured with work on it");
  stream->last = nullptr;
  stream->invalidated = false;
  stream->owner = std::this_thread::get_id();
  return cudaGraphCreate(&stream->recording, 0);
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
  const Lock lock(device().mutex);
  CUstream_st* stream = find(handle);
  if (!stream || !stream->recording) return failed(cudaErrorInvalidValue);
  if (stream->owner != std::this_thread::get_id()) return failed(cudaErrorStreamCaptureWrongThread);
  cudaError_t error = enter("cudaStreamEndCapture");
  if (!error && stream->invalidated) error = failed(cudaErrorStreamCaptureInvalidated);
  *graph = stream->recording;
  stream->recording = nullptr;
  if (error) {
    cudaGraphDestroy(*graph);
    *graph = nullptr;
  }
  return error;
}

cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments, size_t shared_bytes,
                             cudaStream_t stream) {
  const Lock lock(device().mutex);
  if (const cudaError_t error = enter("cudaLaunchKernel")) return error;
  if (shared_bytes) return failed(cudaErrorNotSupported);
  Action action;
  if (const cudaError_t error = kernel_of(function, grid, block, arguments, &action)) return error;
  return put(stream, {cudaGraphNodeTypeKernel, action});
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, void (*function)(void*), void* data) {
  const Lock lock(device().mutex);
  if (const cudaError_t error = enter("cudaLaunchHostFunc")) return error;
  return put(stream, {cudaGraphNodeTypeHost, [=] { function(data); }});
}

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  const Lock lock(device().mutex);
  if (const cudaError_t error = enter("cudaEventCreate")) return error;
  events.push_back(std::make_unique<CUevent_st>());
  *event = events.back().get();
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t handle) {
  const Lock lock(device().mutex);
  if (const cudaError_t error = enter("cudaEventDestroy")) return error;
  CUevent_st* event = find(handle);
  if (!event) return failed(cudaErrorInvalidResourceHandle);
  if (event->pending) set_misuse("an event was destroyed before it was reached");
  event->alive = false;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t handle, cudaStream_t stream) {
  const Lock lock(device().mutex);
  if (const cudaError_t error = enter("cudaEventRecord")) return error;
  CUevent_st* event = find(handle);
  if (!event) return failed(cudaErrorInvalidResourceHandle);
  event->recorded = true;
  ++event->pending;
  return put(stream, {cudaGraphNodeTypeEventRecord, [=] {
                        event->at = std::chrono::steady_clock::now();
                        --event->pending;
                      }});
}

cudaError_t cudaEventSynchronize(cudaEvent_t handle) {
  {
    const Lock lock(device().mutex);
    if (const cudaError_t error = enter("cudaEventSynchronize")) return error;
    if (!find(handle)) return failed(cudaErrorInvalidResourceHandle);
  }
  return wait([=] { return handle->pending == 0; });
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  const Lock lock(device().mutex);
  if (const cudaError_t error = enter("cudaEventElapsedTime")) return error;
  const CUevent_st *first = find(start), *last = find(end);
  if (!first || !last || !first->recorded || !last->recorded) return failed(cudaErrorInvalidResourceHandle);
  if (first->pending || last->pending) return failed(cudaErrorNotReady);
  *milliseconds = std::chrono::duration<float, std::milli>(last->at - first->at).count();
  return cudaSuccess;
}
