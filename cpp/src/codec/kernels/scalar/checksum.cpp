#include <array>
#include <cstring>

#include "codec/kernels/kernels.hpp"

namespace orbitsplit::kernels {

namespace {

using Tables = std::array<std::array<std::uint32_t, 256>, 8>;

// byte_tables[k][b]: the checksum of byte b followed by k zero bytes ("slicing by 8").
constexpr Tables make_byte_tables() {
    Tables tables{};
    for (std::uint32_t byte = 0; byte < 256; ++byte) {
        std::uint32_t crc = byte;
        for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82F63B78 : 0);
        tables[0][byte] = crc;
    }
    for (std::size_t k = 1; k < 8; ++k)
        for (std::size_t byte = 0; byte < 256; ++byte)
            tables[k][byte] = (tables[k - 1][byte] >> 8) ^ tables[0][tables[k - 1][byte] & 0xFF];
    return tables;
}

constexpr Tables byte_tables = make_byte_tables();

std::uint32_t update(std::uint32_t crc, const std::byte* bytes, std::size_t count) {
    std::size_t i = 0;
    for (; i + 8 <= count; i += 8) {
        std::uint64_t word;
        std::memcpy(&word, bytes + i, sizeof word);
        word ^= crc;
        crc = 0;
        for (std::size_t k = 0; k < 8; ++k) crc ^= byte_tables[7 - k][(word >> (8 * k)) & 0xFF];
    }
    for (; i < count; ++i)
        crc = (crc >> 8) ^ byte_tables[0][(crc ^ std::to_integer<std::uint32_t>(bytes[i])) & 0xFF];
    return crc;
}

}  // namespace

constinit const Checksum scalar::checksum = {update};

}  // namespace orbitsplit::kernels
