// How fast is lossless_bf16 for a whole frame including the checksum, and how small is the frame? Minimum of `rounds`
// in memory that is already mapped, one thread, every supported instruction set, compared with a copy.
//
//     bench_lossless [rounds [FILE.npy ...]]
//
// The files contain bfloat16 bits as 16-bit integers, as benches/studies/activations.py saves them; each is measured
// separately. Without files: heavy-tailed channels, about as compressible as hidden states.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "orbitsplit/codec.hpp"

namespace {

using namespace orbitsplit;
using Bits = std::vector<std::uint16_t>;

constexpr std::size_t rows = 4096;
constexpr std::size_t channels = 640;
// No further rounds for an instruction set that has taken this long in total.
constexpr double patience_s = 2;
constexpr Codec codec{.kind = CodecKind::lossless_bf16};

// The numbers of a .npy file: magic and version (8 bytes), the size of a header, the header, the numbers.
Bits load(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    const std::string bytes{std::istreambuf_iterator<char>(file), {}};
    if (bytes.size() < 10 || bytes.compare(1, 5, "NUMPY") != 0)
        throw std::runtime_error(path + " is no .npy file");
    std::uint16_t text = 0;
    std::memcpy(&text, bytes.data() + 8, sizeof text);
    const std::size_t begin = 10 + std::size_t{text};
    if (bytes.size() < begin || bytes.substr(10, text).find("'<u2'") == std::string::npos)
        throw std::runtime_error(path + " does not hold 16-bit integers");
    Bits bits((bytes.size() - begin) / 2);
    std::memcpy(bits.data(), bytes.data() + begin, 2 * bits.size());
    return bits;
}

Bits draw() {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    std::vector<float> size(channels);
    for (float& s : size) s = std::exp2(1.0F * normal(random));
    Bits bits(rows * channels);
    for (std::size_t i = 0; i < bits.size(); ++i) {
        const float value = normal(random) * size[i % channels];
        std::uint32_t whole = 0;
        std::memcpy(&whole, &value, sizeof whole);
        bits[i] = static_cast<std::uint16_t>(whole >> 16);
    }
    return bits;
}

struct Timings {
    double copy = HUGE_VAL;
    double encode = HUGE_VAL;
    double decode = HUGE_VAL;
};

template <class Work>
double keep_least(double& least, Work work) {
    const auto begin = std::chrono::steady_clock::now();
    work();
    const double taken = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    least = std::min(least, taken);
    return taken;
}

// Returns false if decoding did not recover the values.
bool measure(const std::string& name, const Bits& bits, int rounds) {
    const std::span<const std::byte> data = std::as_bytes(std::span(bits));
    const std::int64_t shape[] = {static_cast<std::int64_t>(bits.size())};
    std::vector<std::byte> frame(frame_bytes(DType::bfloat16, shape, codec));
    std::vector<std::byte> decoded(data.size());
    std::size_t size = 0;
    Timings least;
    double spent_s = 0;
    for (int round = 0; round < rounds && spent_s < patience_s; ++round) {
        spent_s += keep_least(least.copy, [&] { std::memcpy(decoded.data(), data.data(), data.size()); });
        spent_s += keep_least(least.encode,
                              [&] { size = compress_into(frame, data, DType::bfloat16, shape, codec); });
        std::memset(decoded.data(), 0, decoded.size());
        spent_s += keep_least(least.decode, [&] {
            decompress_into(decoded, DType::bfloat16, shape, std::span(frame).first(size));
        });
    }
    const auto gigabytes = static_cast<double>(data.size()) / 1e9;
    std::printf("| %s | %s | %.3f | %.2f | %.2f | %.2f |\n", name.c_str(), std::string(isa()).c_str(),
                static_cast<double>(data.size()) / static_cast<double>(size), gigabytes / least.encode,
                gigabytes / least.decode, gigabytes / least.copy);
    return std::ranges::equal(data, decoded);
}

bool measure_all(const std::vector<std::pair<std::string, Bits>>& inputs, int rounds) {
    std::puts("| input | set | ratio | encode GB/s | decode GB/s | copy GB/s |");
    std::puts("| --- | --- | --- | --- | --- | --- |");
    bool is_right = true;
    for (const auto& [name, bits] : inputs) {
        for (const std::string& set : isas()) {
            set_isa(set);
            is_right = measure(name, bits, rounds) && is_right;
        }
    }
    if (!is_right) std::puts("decoding did not give the values back");
    return is_right;
}

}  // namespace

int main(int argc, char** argv) {
    const int rounds = argc > 1 ? std::max(1, std::atoi(argv[1])) : 1000;
    std::vector<std::pair<std::string, Bits>> inputs;
    try {
        for (int i = 2; i < argc; ++i)
            inputs.emplace_back(std::filesystem::path(argv[i]).stem().string(), load(argv[i]));
    } catch (const std::runtime_error& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 2;
    }
    if (inputs.empty()) inputs.emplace_back("heavy-tailed channels", draw());
    return measure_all(inputs, rounds) ? 0 : 1;
}
