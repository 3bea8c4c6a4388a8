// Every instruction set encodes to the frames, and decodes to the arrays, that the scalar kernels produced when
// tests/data/frames/digests.txt was written. The file is the same for all machines; NEON is tested under qemu.
//
//     test_parity digests.txt            compares, on every instruction set of this processor
//     test_parity digests.txt --write    rewrites the file with the scalar kernels, after adding a codec
#include <array>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>

#include "check.hpp"
#include "orbitsplit/calibrated.hpp"
#include "orbitsplit/codec.hpp"

using namespace orbitsplit;

namespace {

constexpr std::array codecs = {"raw",      "bf16",    "int8",         "int8:8", "int8:128",
                               "int4",     "int4:16", "int4:640",     "topk",   "topk:0.02",
                               "topk:0.5", "topk:1",  "lossless_bf16"};
constexpr std::array dtypes = {DType::float32, DType::float16, DType::bfloat16};
constexpr std::array dtype_names = {"float32", "float16", "bfloat16"};
constexpr std::array kinds = {"ordinary", "finite",  "denormal", "integers",
                              "zeros",    "massive", "overflow", "any"};

// Lengths around groups, vectors and bitmaps; numbers of rows around blocks of rows.
constexpr std::array<std::array<std::size_t, 2>, 35> shapes = {
    {{0, 5},   {5, 0},   {1, 1},   {1, 2},   {1, 7},    {1, 8},    {1, 9},    {1, 15},   {1, 16},
     {1, 17},  {1, 31},  {1, 33},  {1, 63},  {1, 64},   {1, 65},   {1, 127},  {1, 128},  {1, 129},
     {1, 255}, {1, 256}, {1, 257}, {1, 640}, {1, 1000}, {1, 2049}, {1, 8192}, {2, 65},   {3, 130},
     {5, 640}, {63, 40}, {64, 64}, {65, 33}, {130, 96}, {257, 20}, {300, 7},  {70, 1100}}};

// FNV-1a: unlike the checksum of frames, not a kernel under test.
class Digest {
  public:
    void add(std::span<const std::byte> bytes) {
        for (const std::byte byte : bytes)
            value_ = (value_ ^ std::to_integer<std::uint64_t>(byte)) * 0x100000001B3;
    }
    void add(std::string_view text) { add(std::as_bytes(std::span(text))); }
    std::string text() const {
        std::array<char, 17> digits;
        std::snprintf(digits.data(), digits.size(), "%016llx", static_cast<unsigned long long>(value_));
        return digits.data();
    }

  private:
    std::uint64_t value_ = 0xCBF29CE484222325;
};

// Distributions differ between standard libraries, and the evaluation order of operands between compilers: values are
// made from bits, one draw in each statement.
class Values {
  public:
    explicit Values(std::uint32_t seed) : random_(seed) {}

    std::uint32_t below(std::uint32_t count) { return random_() % count; }

    std::uint32_t with_exponent(std::uint32_t low, std::uint32_t high) {
        const std::uint32_t exponent = low + below(high - low + 1);
        return (random_() & 0x807FFFFF) | (exponent << 23);
    }

    // The bits of a float32 of `kind`, the index of a name above, in channel `channel`.
    std::uint32_t make(std::size_t kind, std::size_t channel) {
        const std::uint32_t draw = random_();
        const std::uint32_t sign = draw & 0x80000000;
        switch (kind) {
            case 0:
                return with_exponent(120, 130);
            case 1:
                return with_exponent(0, 254);
            case 2:
                return draw & (below(2) != 0 ? 0x80000007 : 0x807FFFFF);
            case 3:
                return std::bit_cast<std::uint32_t>(static_cast<float>(static_cast<int>(below(9)) - 4));
            case 4:
                return sign;
            case 5:
                return channel % 97 == 3 ? with_exponent(135, 140) : with_exponent(122, 128);
            case 6:
                return (std::bit_cast<std::uint32_t>(65504.0F) - 40 + below(20000)) | sign;
            default:
                // Infinities and NaN of any payload, quiet and signalling, one in a few hundred.
                return below(300) == 0 ? draw | 0x7F800000 : draw;
        }
    }

  private:
    std::mt19937 random_;
};

template <class T>
void append(std::vector<std::byte>& out, T value) {
    const auto bytes = std::bit_cast<std::array<std::byte, sizeof value>>(value);
    out.insert(out.end(), bytes.begin(), bytes.end());
}

// An array of the dtype, at an odd address if `is_shifted`.
std::vector<std::byte> make_array(DType dtype, std::size_t kind, std::array<std::size_t, 2> shape,
                                  bool is_shifted) {
    Values values(static_cast<std::uint32_t>(1000 * kind + shape[0] * 31 + shape[1]));
    std::vector<std::byte> out(is_shifted ? 1 : 0);
    for (std::size_t row = 0; row < shape[0]; ++row)
        for (std::size_t channel = 0; channel < shape[1]; ++channel) {
            const std::uint32_t bits = values.make(kind, channel);
            // The top bits of a float32 as a float16: other values, but from every class of float16.
            if (dtype == DType::float32)
                append(out, bits);
            else if (dtype == DType::bfloat16 || kind == 7)
                append(out, static_cast<std::uint16_t>(bits >> 16));
            else
                append(out, static_cast<std::uint16_t>((bits >> 16 & 0x8000) | (bits >> 10 & 0x7BFF)));
        }
    return out;
}

// One codec, with what its digest needs. `width` is the required length of rows, 0 for any.
struct Coder {
    std::string name;
    std::size_t width;
    std::function<std::vector<std::byte>(std::span<const std::byte>, DType, std::span<const std::int64_t>,
                                         int)>
        encode;
    std::function<Decoded(std::span<const std::byte>, int)> decode;
};

Coder calibrated_coder(const char* name, CalibratedParameters parameters) {
    parameters.key = {.codebook = 0x0123456789ABCDEF, .cut = 258, .level = 3};
    const auto codec = std::make_shared<const CalibratedCodec>(std::move(parameters));
    return {name, codec->width(),
            [codec](std::span<const std::byte> data, DType dtype, std::span<const std::int64_t> shape,
                    int threads) { return compress(data, dtype, shape, *codec, threads); },
            [codec](std::span<const std::byte> frame, int threads) {
                return decompress(frame, *codec, {}, threads);
            }};
}

// Parameters from exact arithmetic only, so that they are the same on every machine.
CalibratedParameters calibrated_parameters(std::size_t width, bool has_tables) {
    CalibratedParameters made;
    for (std::size_t c = 0; c < width; ++c) {
        made.step.push_back(std::ldexp(1.0F + static_cast<float>(c % 5) / 8, static_cast<int>(c % 3) - 4));
        made.shift.push_back(static_cast<float>(static_cast<int>(c % 7) - 3) / 16);
        made.threshold.push_back(c % 2 == 0 ? 0.0F : 0.3F);
        if (has_tables) made.table_of_channel.push_back(static_cast<std::uint8_t>(c % 11 == 0 ? 1 : 0));
    }
    if (has_tables) {
        made.tables.resize(2);
        for (int code = -12; code <= 12; ++code)
            made.tables[0][static_cast<std::uint8_t>(code)] = static_cast<std::uint8_t>(16 - std::abs(code));
        made.tables[1][0] = 100;  // the other codes are escapes of the coder
    }
    made.rounding = 0.4375F;
    made.shrink = 0.0625F;
    return made;
}

std::vector<Coder> all_coders() {
    std::vector<Coder> coders;
    for (const char* text : codecs)
        coders.push_back(
            {text, 0,
             [codec = parse_codec(text)](std::span<const std::byte> data, DType dtype,
                                         std::span<const std::int64_t> shape, int threads) {
                 return compress(data, dtype, shape, codec, threads);
             },
             [](std::span<const std::byte> frame, int threads) { return decompress(frame, {}, threads); }});
    coders.push_back(calibrated_coder("calibrated-codes", calibrated_parameters(77, false)));
    coders.push_back(calibrated_coder("calibrated-tables", calibrated_parameters(77, true)));
    coders.push_back(calibrated_coder("calibrated-wide", calibrated_parameters(300, true)));
    CalibratedParameters hadamard = calibrated_parameters(160, true);
    hadamard.hadamard = 32;
    hadamard.scale.assign(160, 0.75F);
    coders.push_back(calibrated_coder("calibrated-hadamard", std::move(hadamard)));
    CalibratedParameters reflected = calibrated_parameters(48, true);
    for (int row = 0; row < 48; ++row)  // 1 - 2 v v' with every element of v 1 / sqrt(48)
        for (int column = 0; column < 48; ++column)
            reflected.matrix.push_back((row == column ? 1.0F : 0.0F) - 1.0F / 24.0F);
    coders.push_back(calibrated_coder("calibrated-matrix", std::move(reflected)));
    CalibratedParameters general = calibrated_parameters(48, true);
    for (int row = 0; row < 48;
         ++row)  // 1 + S / 2, with S the next channel; its inverse is 1 - S / 2 + S^2 / 4 ...
        for (int column = 0; column < 48; ++column) {
            const int ahead = column - row;
            general.matrix.push_back(ahead == 0 ? 1.0F : ahead == 1 ? 0.5F : 0.0F);
            general.inverse.push_back(ahead < 0 ? 0.0F : std::ldexp(ahead % 2 == 0 ? 1.0F : -1.0F, -ahead));
        }
    coders.push_back(calibrated_coder("calibrated-inverse", std::move(general)));
    return coders;
}

// Frame and decoded array, or the error message.
void add_case(Digest& digest, std::span<const std::byte> data, DType dtype,
              std::span<const std::int64_t> shape, const Coder& coder, int threads) {
    try {
        const std::vector<std::byte> frame = coder.encode(data, dtype, shape, threads);
        digest.add(frame);
        digest.add(coder.decode(frame, threads).data);
    } catch (const std::invalid_argument& error) {
        digest.add(std::string_view(error.what()));
    }
}

std::string digest_of(const Coder& coder, DType dtype, std::size_t kind, int threads) {
    Digest digest;
    for (std::size_t i = 0; i < shapes.size(); ++i) {
        std::array<std::size_t, 2> extents = shapes[i];
        if (coder.width != 0) extents[1] = coder.width;
        const std::array<std::int64_t, 2> shape = {static_cast<std::int64_t>(extents[0]),
                                                   static_cast<std::int64_t>(extents[1])};
        const bool is_shifted = i % 2 == 1;
        const std::vector<std::byte> array = make_array(dtype, kind, extents, is_shifted);
        add_case(digest, std::span(array).subspan(is_shifted ? 1 : 0), dtype, shape, coder, threads);
    }
    return digest.text();
}

std::map<std::string, std::string> all_digests(int threads) {
    std::map<std::string, std::string> digests;
    for (const Coder& coder : all_coders())
        for (std::size_t dtype = 0; dtype < dtypes.size(); ++dtype)
            for (std::size_t kind = 0; kind < kinds.size(); ++kind)
                digests[coder.name + ' ' + dtype_names[dtype] + ' ' + kinds[kind]] =
                    digest_of(coder, dtypes[dtype], kind, threads);
    return digests;
}

void write(const char* path) {
    set_isa("scalar");
    std::ofstream file(path);
    for (const auto& [name, digest] : all_digests(1)) file << name << ' ' << digest << '\n';
}

std::map<std::string, std::string> read(const char* path) {
    std::ifstream file(path);
    std::map<std::string, std::string> digests;
    for (std::string codec, dtype, kind, digest; file >> codec >> dtype >> kind >> digest;)
        digests[codec + ' ' + dtype + ' ' + kind] = digest;
    return digests;
}

void compare(const std::map<std::string, std::string>& expected, const std::string& isa, int threads) {
    set_isa(isa);
    const std::map<std::string, std::string> found = all_digests(threads);
    CHECK(found.size() == expected.size());
    std::size_t equal = 0;
    for (const auto& [name, digest] : found) {
        const auto line = expected.find(name);
        const bool is_equal = line != expected.end() && line->second == digest;
        if (!is_equal) std::cerr << isa << ", " << threads << " threads: " << name << " differs\n";
        CHECK(is_equal);
        equal += is_equal ? 1 : 0;
    }
    std::cout << isa << ", " << threads << " threads: " << equal << " of " << expected.size()
              << " digests are as they were\n";
}

}  // namespace

int main(int count, char** arguments) {
    if (count == 3 && std::string_view(arguments[2]) == "--write") {
        write(arguments[1]);
    } else if (count == 2) {
        const std::map<std::string, std::string> expected = read(arguments[1]);
        for (const std::string& isa : isas()) compare(expected, isa, 1);
        compare(expected, isas().back(), 3);
    } else {
        std::cerr << "usage: test_parity digests.txt [--write]\n";
        return 2;
    }
    return failures;
}
