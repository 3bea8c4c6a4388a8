#include "codec/dispatch.hpp"
#include "orbitsplit/frame.hpp"

namespace orbitsplit {

std::uint32_t crc32c(std::span<const std::byte> bytes, std::uint32_t before) {
    return ~kernels::active().checksum->update(~before, bytes.data(), bytes.size());
}

}  // namespace orbitsplit
