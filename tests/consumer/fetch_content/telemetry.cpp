#include "telemetry.hpp"

#include <array>
#include <cstdint>
#include <orbitsplit/codec.hpp>

std::size_t telemetry::raw_row_bytes(std::size_t values) {
    const std::array shape{static_cast<std::int64_t>(values)};
    return orbitsplit::frame_bytes(orbitsplit::DType::float32, shape, orbitsplit::parse_codec("raw"));
}
