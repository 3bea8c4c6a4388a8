// The core's thread pool, for work that consists of independent parts.
//
// Threads start on first use, block while idle, and are joined at exit. A forked child starts its own threads. While
// one caller uses the pool, others run their work on their own thread: several callers already keep several cores
// busy. A build of codecs alone has serial_pool.cpp instead of pool.cpp.
#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>

namespace orbitsplit::pool {

inline constexpr int most_threads = 256;

// Throws std::invalid_argument unless 1 <= threads <= most_threads.
inline void check_threads(int threads) {
    if (threads < 1 || threads > most_threads)
        throw std::invalid_argument("threads is " + std::to_string(threads) + ", it must be from 1 to " +
                                    std::to_string(most_threads));
}

// Calls work(context, part) once for each part, on at most `threads` threads including the caller's, and returns when
// all are done. Rethrows the first exception; other parts may then not have run.
void run(std::size_t parts, int threads, void (*work)(void* context, std::size_t part), void* context);

template <class Work>
void run_parts(std::size_t parts, int threads, Work work) {
    run(parts, threads, [](void* context, std::size_t part) { (*static_cast<Work*>(context))(part); }, &work);
}

}  // namespace orbitsplit::pool
