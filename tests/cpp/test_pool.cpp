// The thread pool: every part runs once, exceptions, concurrent callers, and processes that fork.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

#include "check.hpp"
#include "support/pool.hpp"

using namespace orbitsplit;

namespace {

void check_every_part_runs_once(std::size_t parts, int threads) {
    std::vector<std::atomic<int>> runs(parts);
    pool::run_parts(parts, threads, [&](std::size_t part) { ++runs[part]; });
    for (const auto& count : runs) CHECK(count == 1);
}

void test_every_part_runs_once() {
    for (const std::size_t parts : {0UL, 1UL, 2UL, 3UL, 7UL, 100UL})
        for (const int threads : {1, 2, 3, 8}) check_every_part_runs_once(parts, threads);
}

void test_threads_are_used_and_bounded() {
    std::mutex mutex;
    std::set<std::thread::id> seen;
    std::atomic<int> inside = 0;
    // Each part waits until another one is running, so that it takes two threads to finish.
    pool::run_parts(2, 3, [&](std::size_t) {
        for (++inside; inside < 2;) std::this_thread::yield();
        const std::lock_guard lock(mutex);
        seen.insert(std::this_thread::get_id());
    });
    CHECK(seen.size() == 2);
    // The pool has more threads now; a call for two uses at most two.
    check_every_part_runs_once(8, 8);
    seen.clear();
    pool::run_parts(200, 2, [&](std::size_t) {
        for (int turn = 0; turn < 20; ++turn) std::this_thread::yield();
        const std::lock_guard lock(mutex);
        seen.insert(std::this_thread::get_id());
    });
    CHECK(seen.size() <= 2);
}

void test_exceptions_reach_the_caller() {
    const auto fail = [](std::size_t part) {
        if (part % 3 == 1) throw std::runtime_error("part failed");
    };
    for (const int threads : {1, 2, 4})
        CHECK_THROWS(pool::run_parts(20, threads, fail), std::runtime_error, "part failed");
    check_every_part_runs_once(20, 4);
}

void test_callers_at_the_same_time() {
    std::vector<std::thread> callers;
    for (int caller = 0; caller < 4; ++caller)
        callers.emplace_back([] {
            for (int round = 0; round < 50; ++round) check_every_part_runs_once(5, 3);
        });
    for (std::thread& caller : callers) caller.join();
}

// When the child of a multi-threaded process starts a thread, qemu-user 7 fails an assertion, and the thread sanitizer ends
// it ("dup thread with used id").
#if !defined(ORBITSPLIT_UNDER_QEMU) && !defined(__SANITIZE_THREAD__)
void test_a_child_starts_its_own() {
    check_every_part_runs_once(8, 3);
    const pid_t child = fork();
    if (child == 0) {
        test_threads_are_used_and_bounded();
        std::exit(failures);
    }
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    check_every_part_runs_once(8, 3);
}
#endif

void test_limits() {
    for (const int threads : {0, -1, 257})
        CHECK_THROWS(pool::check_threads(threads), std::invalid_argument, "it must be from 1 to 256");
    pool::check_threads(256);
}

}  // namespace

int main() {
    test_every_part_runs_once();
    test_threads_are_used_and_bounded();
    test_exceptions_reach_the_caller();
    test_callers_at_the_same_time();
#if !defined(ORBITSPLIT_UNDER_QEMU) && !defined(__SANITIZE_THREAD__)
    test_a_child_starts_its_own();
#endif
    test_limits();
    return failures;
}
