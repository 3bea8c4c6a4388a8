// Calls of the core during which other Python threads run, and which Ctrl-C ends.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>

#include "interrupts.hpp"
#include "orbitsplit/error.hpp"
#include "orbitsplit/execution.hpp"

// Arrays of at least this size, some 30 us of work, are processed without the interpreter's lock. For smaller ones
// releasing it costs more than the work: reacquiring it from a busy thread takes up to 5 ms, its switch interval.
inline constexpr std::size_t unlocked_bytes = std::size_t{256} << 10;

template <class Call>
auto unlocked(std::size_t array_bytes, int threads, Call call) {
    if (array_bytes < unlocked_bytes) return call(orbitsplit::Execution(threads));
    Interrupts interrupts;
    try {
        const pybind11::gil_scoped_release release;
        return call(orbitsplit::Execution(threads, interrupts.stop_requested()));
    } catch (const orbitsplit::StoppedError&) {
        interrupts.rethrow();
        throw;
    }
}
