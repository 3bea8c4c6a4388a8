// The library of a user, whose interface has a type of ours.
#pragma once

#include <orbitsplit/frame.hpp>

namespace telemetry {

// How many bytes the frame of a raw row of float32 values has.
std::size_t raw_row_bytes(std::size_t values);

}  // namespace telemetry
