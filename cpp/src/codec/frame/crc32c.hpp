// Checksums of concatenated bytes, for parts that are processed separately.
#pragma once

#include <cstdint>

namespace orbitsplit {

// The CRC-32C of two consecutive byte ranges, from the checksums of both and the size of the second.
std::uint32_t crc32c_combine(std::uint32_t first, std::uint32_t second, std::uint64_t second_bytes);

}  // namespace orbitsplit
