#include "support/pool.hpp"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace orbitsplit::pool {

namespace {

// The parts of one call; each thread takes the next part until none is left.
class Job {
  public:
    Job(std::size_t parts, void (*work)(void*, std::size_t), void* context)
        : parts_(parts), work_(work), context_(context) {}

    void take_parts() {
        try {
            for (std::size_t part = next_++; part < parts_; part = next_++) work_(context_, part);
        } catch (...) {
            next_ = parts_;
            const std::lock_guard lock(mutex_);
            if (!error_) error_ = std::current_exception();
        }
    }

    // After all threads have left.
    void rethrow() const {
        if (error_) std::rethrow_exception(error_);
    }

  private:
    std::size_t parts_;
    void (*work_)(void*, std::size_t);
    void* context_;
    std::atomic<std::size_t> next_ = 0;
    std::mutex mutex_;
    std::exception_ptr error_;
};

class Pool {
  public:
    // Returns false if another caller uses the threads.
    bool try_run(Job& job, std::size_t helpers) {
        const std::unique_lock owner(owner_, std::try_to_lock);
        if (!owner) return false;
        {
            const std::lock_guard lock(mutex_);
            start_workers(helpers);
            job_ = &job;
            wanted_ = std::min(helpers, workers_.size());
        }
        has_work_.notify_all();
        job.take_parts();
        std::unique_lock lock(mutex_);
        wanted_ = 0;
        is_done_.wait(lock, [&] { return running_ == 0; });
        return true;
    }

    void stop() {
        {
            const std::lock_guard lock(mutex_);
            is_stopped_ = true;
        }
        has_work_.notify_all();
        for (std::thread& worker : workers_) worker.join();
    }

  private:
    void start_workers(std::size_t count) {
        try {
            while (!is_stopped_ && workers_.size() < count)
                workers_.emplace_back([this] { wait_for_work(); });
        } catch (const std::system_error&) {
            // The system allows no more: the threads there are and the caller do the work.
        }
    }

    void wait_for_work() {
        std::unique_lock lock(mutex_);
        while (true) {
            has_work_.wait(lock, [&] { return is_stopped_ || wanted_ > 0; });
            if (is_stopped_) return;
            --wanted_;
            ++running_;
            lock.unlock();
            job_->take_parts();
            lock.lock();
            if (--running_ == 0) is_done_.notify_one();
        }
    }

    std::mutex owner_;
    std::mutex mutex_;
    std::condition_variable has_work_;
    std::condition_variable is_done_;
    std::vector<std::thread> workers_;
    Job* job_ = nullptr;
    std::size_t wanted_ = 0;
    std::size_t running_ = 0;
    bool is_stopped_ = false;
};

// Never freed: a thread of the user may still be using it at exit.
std::atomic<Pool*> shared = nullptr;

void stop_shared() {
    if (Pool* pool = shared.load()) pool->stop();
}

Pool& shared_pool() {
    static std::once_flag registered;
    std::call_once(registered, [] {
        std::atexit(stop_shared);
#if defined(__unix__) || defined(__APPLE__)
        // The child has none of the threads and possibly a locked mutex: it starts with a new pool.
        pthread_atfork(nullptr, nullptr, [] { shared = nullptr; });
#endif
    });
    Pool* pool = shared.load();
    if (pool == nullptr) {
        auto* fresh = new Pool;
        if (shared.compare_exchange_strong(pool, fresh))
            pool = fresh;
        else
            delete fresh;
    }
    return *pool;
}

}  // namespace

void run(std::size_t parts, int threads, void (*work)(void*, std::size_t), void* context) {
    Job job(parts, work, context);
    const std::size_t useful = std::min(parts, static_cast<std::size_t>(threads));
    if (useful < 2 || !shared_pool().try_run(job, useful - 1)) job.take_parts();
    job.rethrow();
}

}  // namespace orbitsplit::pool
