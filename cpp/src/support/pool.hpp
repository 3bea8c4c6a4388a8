// Threads of the core's own, for work that falls into independent parts.
//
// They are started on first use, wait without turning, and are joined when the program ends. A process that
// was forked starts its own. Who asks while another caller has them does its work alone: several callers
// already keep several processors busy.
#pragma once

#include <cstddef>

namespace orbitsplit::pool {

inline constexpr int most_threads = 256;

// Throws std::invalid_argument unless 1 <= threads <= most_threads.
void check_threads(int threads);

// Calls work(context, part) for each part once, on at most `threads` threads of which the caller is one, and
// returns when all are done. Of exceptions the first one is thrown again; the other parts may not have run.
void run(std::size_t parts, int threads, void (*work)(void* context, std::size_t part), void* context);

template <class Work>
void run_parts(std::size_t parts, int threads, Work work) {
    run(parts, threads, [](void* context, std::size_t part) { (*static_cast<Work*>(context))(part); }, &work);
}

}  // namespace orbitsplit::pool
