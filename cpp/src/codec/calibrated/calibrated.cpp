#include "codec/calibrated/calibrated.hpp"

#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "support/message.hpp"

namespace orbitsplit {

namespace {

constexpr std::size_t largest_width = std::size_t{1} << 20;
constexpr float smallest_step = 0x1p-126F;  // its inverse is finite
constexpr float smallest_scale = 0x1p-120F;
constexpr float largest_step = 0x1p120F;  // with the largest shift, codes stay within float32
constexpr float largest_shift = 0x1p126F;
constexpr double norm_tolerance = 1e-3;
// Of a matrix that has an inverse. Numbers up to 2^67 then stay within float32 for rows of any width, and since the two
// are inverse neither can shrink a row by more than 2^40 times the width.
constexpr float largest_entry = 0x1p40F;
// A wrong inverse deviates by about 1, rounding to float32 by about 2^-24 times the condition number.
constexpr double identity_tolerance = 1e-2;

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
    throw std::invalid_argument(message::joined(parts...));
}

void check_width(const CalibratedParameters& p) {
    if (p.step.empty() || p.step.size() > largest_width)
        refuse("step has ", p.step.size(), " channels, it must have from 1 to ", largest_width);
    const auto check = [&](const char* name, std::size_t size) {
        if (size != 0 && size != p.step.size())
            refuse(name, " has ", size, " channels, step has ", p.step.size());
    };
    check("shift", p.shift.size());
    check("scale", p.scale.size());
    check("threshold", p.threshold.size());
    if (p.table_of_channel.size() != (p.tables.empty() ? 0 : p.step.size()))
        refuse("table_of_channel has ", p.table_of_channel.size(), " channels, with ", p.tables.size(),
               " tables it must have ", p.tables.empty() ? 0 : p.step.size());
}

// Written so that NaN is rejected.
void check_numbers(const char* name, const std::vector<float>& numbers, float low, float high,
                   const char* valid) {
    for (std::size_t c = 0; c < numbers.size(); ++c)
        if (!(numbers[c] >= low && numbers[c] <= high))
            refuse(name, '[', c, "] is ", numbers[c], ", it must be ", valid);
}

void check_scales(const CalibratedParameters& p) {
    check_numbers("step", p.step, smallest_step, largest_step, "from 2^-126 to 2^120");
    check_numbers("shift", p.shift, -largest_shift, largest_shift, "from -2^126 to 2^126");
    check_numbers("scale", p.scale, smallest_scale, largest_step, "from 2^-120 to 2^120");
    check_numbers("threshold", p.threshold, 0, std::numeric_limits<float>::max(), "finite and at least 0");
    if (!(p.rounding > 0 && p.rounding <= 0.5F))
        refuse("rounding is ", p.rounding, ", it must be in (0, 0.5]");
    if (!(p.shrink >= 0 && p.shrink < 0.5F)) refuse("shrink is ", p.shrink, ", it must be in [0, 0.5)");
}

// Checking that rows are orthogonal would take width^3 operations; a matrix of the wrong scale is found in width^2.
void check_norms(const std::vector<float>& matrix, std::size_t n) {
    for (std::size_t row = 0; row < n; ++row) {
        double norm = 0;
        for (std::size_t i = 0; i < n; ++i) norm += double{matrix[row * n + i]} * matrix[row * n + i];
        if (!(std::fabs(norm - 1) <= norm_tolerance))
            refuse("row ", row, " of matrix has the squared norm ", norm, ", an orthogonal matrix has 1");
    }
}

void check_entries(const char* name, const std::vector<float>& matrix, std::size_t n) {
    for (std::size_t k = 0; k < matrix.size(); ++k)
        if (!(std::fabs(matrix[k]) <= largest_entry))
            refuse(name, '[', k / n, ", ", k % n, "] is ", matrix[k], ", it must be from -2^40 to 2^40");
}

// One number of each of eight test vectors.
using Tested = std::array<double, 8>;

// Pseudo-random signs, unrelated to any structure of a matrix.
std::vector<Tested> test_vectors(std::size_t n) {
    std::vector<Tested> vectors(n);
    for (std::size_t i = 0; i < n; ++i) {
        std::uint32_t bits = (static_cast<std::uint32_t>(i) + 1) * 0x9E3779B1U;
        bits = (bits ^ bits >> 15) * 0x85EBCA77U;
        for (std::size_t v = 0; v < vectors[i].size(); ++v)
            vectors[i][v] = (bits >> (24 + v) & 1U) != 0 ? -1 : 1;
    }
    return vectors;
}

std::vector<Tested> product(const std::vector<float>& matrix, const std::vector<Tested>& vectors) {
    const std::size_t n = vectors.size();
    std::vector<Tested> result(n);
    for (std::size_t row = 0; row < n; ++row)
        for (std::size_t i = 0; i < n; ++i)
            for (std::size_t v = 0; v < result[row].size(); ++v)
                result[row][v] += double{matrix[row * n + i]} * vectors[i][v];
    return result;
}

// Freivalds (1977): compares inverse * (matrix * v) with v for vectors of random signs. A row whose error has some norm
// deviates by about that much for each vector.
void check_inverse(const CalibratedParameters& p) {
    const std::size_t n = p.step.size();
    check_entries("matrix", p.matrix, n);
    check_entries("inverse", p.inverse, n);
    const std::vector<Tested> vectors = test_vectors(n);
    const std::vector<Tested> back = product(p.inverse, product(p.matrix, vectors));
    double worst = 0;
    std::size_t worst_row = 0;
    for (std::size_t row = 0; row < n; ++row)
        for (std::size_t v = 0; v < vectors[row].size(); ++v) {
            const double deviation = std::fabs(back[row][v] - vectors[row][v]);
            if (deviation > worst) {
                worst = deviation;
                worst_row = row;
            }
        }
    if (worst > identity_tolerance)
        refuse("inverse times matrix deviates from the identity by ", worst, " in row ", worst_row,
               ", the limit is ", identity_tolerance);
}

void check_transform(const CalibratedParameters& p) {
    const std::size_t n = p.step.size();
    if (p.hadamard < 0 || (p.hadamard & (p.hadamard - 1)) != 0 ||
        (p.hadamard > 0 && n % static_cast<std::size_t>(p.hadamard) != 0))
        refuse("hadamard is ", p.hadamard, ", it must be 0 or a power of two that divides the width of ", n);
    if (p.matrix.empty() && p.hadamard < 2 && !p.scale.empty())
        refuse("scale is given without a transform, where it belongs into step");
    if (p.matrix.empty()) {
        if (!p.inverse.empty()) refuse("inverse is given without a matrix");
        return;
    }
    if (p.hadamard != 0) refuse("hadamard is ", p.hadamard, " beside a matrix, a codec has one transform");
    if (p.matrix.size() != n * n)
        refuse("matrix has ", p.matrix.size(), " numbers, a width of ", n, " needs ", n * n);
    if (!p.inverse.empty() && p.inverse.size() != n * n)
        refuse("inverse has ", p.inverse.size(), " numbers, a width of ", n, " needs ", n * n);
    if (p.inverse.empty())
        check_norms(p.matrix, n);
    else
        check_inverse(p);
}

void check_tables(const CalibratedParameters& p) {
    if (p.tables.size() > stream::max_tables)
        refuse("there are ", p.tables.size(), " tables, the limit is ", stream::max_tables);
    for (std::size_t t = 0; t < p.tables.size(); ++t) {
        const int sum = std::accumulate(p.tables[t].begin(), p.tables[t].end(), 0);
        if (sum < 1 || sum > 255)
            refuse("tables[", t, "] has frequencies that add up to ", sum, ", they must add up to 1 to 255");
    }
    for (std::size_t c = 0; c < p.table_of_channel.size(); ++c)
        if (p.table_of_channel[c] >= p.tables.size())
            refuse("table_of_channel[", c, "] is ", int{p.table_of_channel[c]}, ", there are ",
                   p.tables.size(), " tables");
}

std::vector<float> inverses(const std::vector<float>& numbers) {
    std::vector<float> result;
    result.reserve(numbers.size());
    for (const float number : numbers) result.push_back(1.0F / number);
    return result;
}

std::vector<stream::SymbolTable> symbol_tables(const std::vector<SymbolFrequencies>& tables) {
    std::vector<stream::SymbolTable> result;
    for (const SymbolFrequencies& table : tables) {
        const int sum = std::accumulate(table.begin(), table.end(), 0);
        result.push_back({.frequency = table, .escape = static_cast<std::uint8_t>(256 - sum)});
    }
    return result;
}

std::vector<float> transpose(const std::vector<float>& matrix, std::size_t n) {
    std::vector<float> result(matrix.size());
    for (std::size_t k = 0; k < matrix.size(); ++k) result[k % n * n + k / n] = matrix[k];
    return result;
}

}  // namespace

SymbolFrequencies table_from_counts(std::span<const std::uint64_t, 256> counts) {
    constexpr std::uint64_t limit = std::uint64_t{1} << 40;
    std::uint64_t total = 0;
    for (const std::uint64_t count : counts) {
        // Each count is checked first: their sum could overflow 64 bits.
        if (count >= limit || (total += count) >= limit)
            refuse("counts add up to 2^40 or more, they must add up to less");
    }
    return stream::build_table(counts).frequency;
}

CalibratedCodec::CalibratedCodec(CalibratedParameters parameters) {
    if (parameters.key.codebook == 0) throw std::invalid_argument("codebook is 0, which stands for none");
    check_width(parameters);
    check_scales(parameters);
    check_transform(parameters);
    check_tables(parameters);
    auto prepared = std::make_unique<calibrated::Prepared>();
    prepared->parameters = std::move(parameters);
    const CalibratedParameters& p = prepared->parameters;
    prepared->inverse_step = inverses(p.step);
    prepared->inverse_scale = inverses(p.scale);
    prepared->transposed = transpose(p.matrix, p.step.size());
    prepared->transposed_inverse = transpose(p.inverse, p.step.size());
    if (p.hadamard > 1)
        prepared->hadamard_scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(p.hadamard)));
    if (!p.tables.empty()) prepared->tables.emplace(symbol_tables(p.tables), p.table_of_channel);
    prepared_ = std::move(prepared);
}

CalibratedCodec::~CalibratedCodec() = default;
CalibratedCodec::CalibratedCodec(CalibratedCodec&&) noexcept = default;
CalibratedCodec& CalibratedCodec::operator=(CalibratedCodec&&) noexcept = default;

const calibrated::Prepared& calibrated::prepared(const CalibratedCodec& codec) { return *codec.prepared_; }

kernels::ChannelScales calibrated::Prepared::scales() const {
    const auto data = [](const std::vector<float>& numbers) {
        return numbers.empty() ? nullptr : numbers.data();
    };
    return {.shift = transforms() ? nullptr : data(parameters.shift),
            .step = parameters.step.data(),
            .inverse_step = inverse_step.data(),
            .threshold = data(parameters.threshold),
            .rounding = parameters.rounding,
            .shrink = parameters.shrink};
}

const CalibratedParameters& CalibratedCodec::parameters() const { return prepared_->parameters; }

}  // namespace orbitsplit
