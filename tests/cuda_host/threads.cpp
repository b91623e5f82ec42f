// Threads of a block that run in turns: each until it waits, at a barrier of the block or for its warp.
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <vector>

#include "host_intrinsics.h"

namespace host_run {

[[noreturn]] void fail(const char* message) {
  std::fprintf(stderr, "host run of a CUDA kernel: %s\n", message);
  std::abort();
}

namespace {

enum class Waits { no, for_warp, for_block, forever };

// An asynchronous copy on its way.
struct Copy {
  void* to;
  const void* from;
  int bytes;
  void run() const { std::memcpy(to, from, size_t(bytes)); }
};

// One thread. Switches are by setjmp and longjmp, which call no system function; a context only serves to start on a
// stack of its own.
struct Fiber {
  static constexpr size_t stack_bytes = 256 << 10;
  ucontext_t start;
  jmp_buf here;
  bool started = false;
  Waits waits = Waits::forever;
  int exchanges = 0;
  std::vector<Copy> open_group;
  std::deque<std::vector<Copy>> groups;  // closed ones
  void* stack = mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  ~Fiber() { munmap(stack, stack_bytes); }
};

std::vector<std::unique_ptr<Fiber>> fibers;
const std::function<void()>* body;
jmp_buf scheduler;
std::vector<unsigned char> shared;
Exchange exchanges[2];

Fiber& current() { return *fibers[threadIdx.x]; }

// Back to the scheduler, until it comes back to this thread.
void wait(Waits why) {
  Fiber& fiber = current();
  fiber.waits = why;
  if (_setjmp(fiber.here) == 0) _longjmp(scheduler, 1);
}

void run_fiber() {
  for (;;) {
    (*body)();
    wait(Waits::forever);
  }
}

void resume(unsigned thread) {
  threadIdx = thread;
  Fiber& fiber = *fibers[thread];
  fiber.waits = Waits::no;
  if (_setjmp(scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.here, 1);
  fiber.started = true;
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = fiber.stack;
  fiber.start.uc_stack.ss_size = Fiber::stack_bytes;
  fiber.start.uc_link = nullptr;
  makecontext(&fiber.start, run_fiber, 0);
  setcontext(&fiber.start);
}

// Runs the threads [first, last), which all may run, until each waits for the block or has ended.
void run_warp(unsigned first, unsigned last) {
  for (;;) {
    unsigned waiting = 0;
    for (unsigned i = first; i < last; ++i) {
      const unsigned thread = state.reversed ? first + last - 1 - i : i;
      resume(thread);
      waiting += fibers[thread]->waits == Waits::for_warp;
    }
    if (waiting == 0) return;
    if (waiting != 32) fail("a warp's threads don't all take part in an instruction of the warp");
  }
}

}  // namespace

void block_barrier() { wait(Waits::for_block); }
void warp_barrier() { wait(Waits::for_warp); }

void* shared_memory() { return shared.data() + (64 - reinterpret_cast<uintptr_t>(shared.data()) % 64) % 64; }

const Exchange& exchange(const void* mine, int bytes) {
  // Two in turns: nobody can be two exchanges ahead.
  Exchange& e = exchanges[current().exchanges++ % 2];
  std::memcpy(e.of[threadIdx.x % 32], mine, bytes);
  wait(Waits::for_warp);
  return e;
}

void start_copy(void* to, const void* from, int bytes) {
  const auto misaligned = [&](const void* p) { return reinterpret_cast<uintptr_t>(p) % size_t(bytes) != 0; };
  if (misaligned(to) || misaligned(from)) fail("a copy that isn't aligned to its size");
  const auto *const first = static_cast<const unsigned char*>(shared_memory()), *const at = static_cast<unsigned char*>(to);
  if (at < first || at + bytes > shared.data() + shared.size()) fail("an asynchronous copy to elsewhere than shared memory");
  const Copy copy{to, from, bytes};
  state.early_copies ? copy.run() : current().open_group.push_back(copy);
}

void close_group_of_copies() {
  Fiber& fiber = current();
  fiber.groups.push_back(std::move(fiber.open_group));
  fiber.open_group.clear();
}

void wait_for_copies(int groups_still_on_their_way) {
  auto& groups = current().groups;
  for (; groups.size() > size_t(groups_still_on_their_way); groups.pop_front()) {
    for (const Copy& copy : groups.front()) copy.run();
  }
}

void run_block(const std::function<void()>& thread, size_t shared_bytes) {
  constexpr size_t guard = 4096;
  constexpr unsigned char unset = 0xff;  // a NaN in every format
  if (shared_bytes > size_t(state.shared_bytes)) fail("more shared memory than there is");
  shared.assign(shared_bytes + guard + 64, unset);
  body = &thread;
  const unsigned threads = blockDim.x, warps = (threads + 31) / 32;
  while (fibers.size() < threads) fibers.push_back(std::make_unique<Fiber>());
  for (;;) {
    unsigned ended = 0;
    for (unsigned i = 0; i < warps; ++i) {
      const unsigned first = 32 * (state.reversed ? warps - 1 - i : i),
                     last = first + 32 < threads ? first + 32 : threads;
      run_warp(first, last);
      for (unsigned t = first; t < last; ++t) ended += fibers[t]->waits == Waits::forever;
    }
    if (ended == threads) break;
    if (ended != 0) fail("a thread ends while others wait for it");
  }
  for (unsigned i = 0; i < threads; ++i) {
    if (!fibers[i]->open_group.empty()) fail("a copy that belongs to no group");
    for (const auto& group : fibers[i]->groups) {
      if (!group.empty()) fail("a copy that nobody waits for");
    }
    fibers[i]->groups.clear();
  }
  const auto* const end = static_cast<const unsigned char*>(shared_memory()) + shared_bytes;
  for (size_t i = 0; i < guard; ++i) {
    if (end[i] != unset) fail("a write behind the shared memory");
  }
}

}  // namespace host_run
