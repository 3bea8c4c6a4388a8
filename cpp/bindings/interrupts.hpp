// Signals, such as Ctrl-C, during a call that runs without the interpreter's lock.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <thread>

// Python runs signal handlers on its main thread only: so the calling thread itself takes the lock at intervals and
// lets them run. Calls from other threads are not interrupted.
class Interrupts {
  public:
    // For the core: whether a handler raised an exception, so that the call has to end. On the core's own threads it
    // only reports what the calling thread found.
    std::function<bool()> stop_requested() {
        return [this] { return poll(); };
    }

    // With the lock: throws the handler's exception, if there is one.
    void rethrow() const;

  private:
    using Clock = std::chrono::steady_clock;

    bool poll();

    const std::thread::id caller_ = std::this_thread::get_id();
    Clock::time_point last_ = Clock::now();
    std::atomic<bool> is_raised_ = false;
};
