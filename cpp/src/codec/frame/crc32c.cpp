#include "codec/frame/crc32c.hpp"

#include <array>

#include "codec/kernels/dispatch.hpp"
#include "orbitsplit/frame.hpp"

namespace orbitsplit {

namespace {

// Polynomials over GF(2) modulo that of CRC-32C; coefficients from the highest (bit 0) to the lowest.
constexpr std::uint32_t one = 0x80000000;

constexpr std::uint32_t times_x(std::uint32_t a) { return (a >> 1) ^ ((a & 1) != 0 ? 0x82F63B78 : 0); }

constexpr std::uint32_t product(std::uint32_t a, std::uint32_t b) {
    std::uint32_t sum = 0;
    for (; a != 0; a <<= 1, b = times_x(b)) sum ^= (a & one) != 0 ? b : 0;
    return sum;
}

// powers[k]: x^(8 * 2^k), the factor that advances a checksum over 2^k bytes.
constexpr std::array<std::uint32_t, 64> make_powers() {
    std::array<std::uint32_t, 64> powers{};
    powers[0] = one;
    for (int bit = 0; bit < 8; ++bit) powers[0] = times_x(powers[0]);
    for (std::size_t k = 1; k < powers.size(); ++k) powers[k] = product(powers[k - 1], powers[k - 1]);
    return powers;
}

constexpr std::array<std::uint32_t, 64> powers = make_powers();

}  // namespace

std::uint32_t crc32c(std::span<const std::byte> bytes, std::uint32_t before) {
    return ~kernels::active().checksum->update(~before, bytes.data(), bytes.size());
}

std::uint32_t crc32c_combine(std::uint32_t first, std::uint32_t second, std::uint64_t second_bytes) {
    for (std::size_t k = 0; second_bytes != 0; ++k, second_bytes >>= 1)
        if ((second_bytes & 1) != 0) first = product(first, powers[k]);
    return first ^ second;
}

}  // namespace orbitsplit
