// How a call of a codec runs: on how many threads, and until when.
#pragma once

#include <functional>
#include <utility>

namespace orbitsplit {

struct Execution {
    // Implicit, so that a number of threads can be passed alone.
    Execution(int thread_count = 1, std::function<bool()> stop = {})
        : threads(thread_count), stop_requested(std::move(stop)) {}

    int threads;  // at most, 1 to 256; results do not depend on it
    // Called by every thread, up to some thousand times a second. Once it returns true the call throws StoppedError and
    // leaves its output unspecified. For a std::stop_token: [token] { return token.stop_requested(); }.
    std::function<bool()> stop_requested;
};

}  // namespace orbitsplit
