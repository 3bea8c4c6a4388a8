#include "interrupts.hpp"

#include <pybind11/pybind11.h>

namespace py = pybind11;

bool Interrupts::poll() {
    // Taking the lock from a busy thread takes up to 5 ms.
    constexpr std::chrono::milliseconds interval{50};
    if (is_raised_ || std::this_thread::get_id() != caller_) return is_raised_;
    if (Clock::now() - last_ < interval) return false;
    const py::gil_scoped_acquire lock;
    is_raised_ = PyErr_CheckSignals() != 0;
    last_ = Clock::now();
    return is_raised_;
}

void Interrupts::rethrow() const {
    if (is_raised_) throw py::error_already_set();
}
