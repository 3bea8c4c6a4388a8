// Quantised weights: formats, products and refusals, on every instruction set of this processor.
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "check.hpp"
#include "orbitsplit/codec.hpp"
#include "orbitsplit/weights.hpp"
#include "support/float_bits.hpp"

using namespace orbitsplit;

namespace {

constexpr WeightFormat formats[] = {WeightFormat::int8, WeightFormat::int4, WeightFormat::int5};
constexpr float infinity = std::numeric_limits<float>::infinity();

struct Matrix {
    WeightFormat format;
    std::size_t rows;
    std::size_t columns;
    std::vector<std::byte> memory;  // one byte more: the matrix begins at an odd address

    WeightMatrix view() const {
        return {format, static_cast<std::int64_t>(rows), static_cast<std::int64_t>(columns),
                std::span(memory).subspan(1)};
    }
    std::span<std::byte> bytes() { return std::span(memory).subspan(1); }
};

Matrix empty_matrix(WeightFormat format, std::size_t rows, std::size_t columns) {
    const std::uint64_t bytes =
        quantized_bytes(format, static_cast<std::int64_t>(rows), static_cast<std::int64_t>(columns));
    return {format, rows, columns, std::vector<std::byte>(bytes + 1)};
}

Matrix quantized(WeightFormat format, const std::vector<float>& values, std::size_t columns) {
    Matrix made = empty_matrix(format, values.size() / columns, columns);
    quantize(format, values, static_cast<std::int64_t>(made.rows), static_cast<std::int64_t>(columns),
             made.bytes());
    return made;
}

// Distributions differ between standard libraries: values are made from bits.
std::vector<float> random_values(std::size_t count, std::uint32_t seed, int exponents = 4) {
    std::mt19937 random(seed);
    std::vector<float> values(count);
    for (float& value : values) {
        const std::uint32_t draw = random();
        const auto mantissa = static_cast<float>(static_cast<std::int32_t>(draw) >> 8);
        value = std::ldexp(mantissa, -24 - static_cast<int>(draw % static_cast<std::uint32_t>(exponents)));
    }
    return values;
}

std::vector<float> product(const Matrix& matrix, const std::vector<float>& x, std::size_t inputs,
                           int threads = 1) {
    std::vector<float> y(inputs * matrix.rows);
    std::vector<std::byte> scratch(
        product_scratch_bytes(static_cast<std::int64_t>(inputs), static_cast<std::int64_t>(matrix.columns)));
    multiply(matrix.view(), x, static_cast<std::int64_t>(inputs), y, scratch, threads);
    return y;
}

std::vector<float> values_of(const Matrix& matrix) {
    std::vector<float> values(matrix.rows * matrix.columns);
    dequantize(matrix.view(), 0, values);
    return values;
}

bool is_same(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * 4) == 0);
}

template <class T>
T read(std::span<const std::byte> bytes, std::size_t at) {
    T value;
    std::memcpy(&value, bytes.data() + at, sizeof value);
    return value;
}

// A weight, read as the header says.
double weight_at(const Matrix& matrix, std::size_t row, std::size_t column) {
    const std::span<const std::byte> all = matrix.view().data;
    const std::size_t groups = matrix.columns / 32;
    const std::size_t g = column / 32;
    const std::size_t i = column % 32;
    if (matrix.format == WeightFormat::int8) {
        const std::size_t at = (row * groups + g) * 34;
        return double{float_bits::single_from_half(read<std::uint16_t>(all, at))} *
               read<std::int8_t>(all, at + 2 + i);
    }
    const std::size_t code_bytes = matrix.format == WeightFormat::int4 ? 16 : 20;
    const auto bytes = all.subspan(row * (8 + (2 + code_bytes) * groups));
    const std::size_t codes_at = 8 + 2 * groups + code_bytes * g;
    const int both = read<std::uint8_t>(bytes, codes_at + i % 16);
    int q = i < 16 ? both % 16 : both / 16;
    if (matrix.format == WeightFormat::int5)
        q += 16 * (read<std::uint8_t>(bytes, codes_at + 16 + i / 8) >> i % 8 & 1);
    return double{read<float>(bytes, 0)} * read<std::uint8_t>(bytes, 8 + g) * q -
           double{read<float>(bytes, 4)} * read<std::uint8_t>(bytes, 8 + groups + g);
}

void test_sizes() {
    CHECK(quantized_bytes(WeightFormat::int8, 3, 64) == 3 * 2 * 34);
    CHECK(quantized_bytes(WeightFormat::int4, 3, 64) == 3 * (8 + 2 * 18));
    CHECK(quantized_bytes(WeightFormat::int4, 0, 64) == 0);
    CHECK(quantized_bytes(WeightFormat::int5, 3, 64) == 3 * (8 + 2 * 22));
    CHECK_THROWS(quantized_bytes(WeightFormat::int8, 1, 33), std::invalid_argument,
                 "columns is 33, it must be a multiple of 32 from 32");
    CHECK_THROWS(quantized_bytes(WeightFormat::int8, 1, 0), std::invalid_argument, "columns is 0");
    CHECK_THROWS(quantized_bytes(WeightFormat::int8, -1, 32), std::invalid_argument,
                 "rows is -1, it must be at least 0");
    CHECK_THROWS(quantized_bytes(static_cast<WeightFormat>(3), 1, 32), std::invalid_argument,
                 "weight format 3 is unknown; 0 is int8, 1 is int4, 2 is int5");
    CHECK_THROWS(quantized_bytes(WeightFormat::int8, std::int64_t{1} << 57, 64), std::invalid_argument,
                 "the matrix has 2^63 bytes or more");
    CHECK_THROWS(product_scratch_bytes(-1, 32), std::invalid_argument, "inputs is -1, it must be at least 0");
}

// Half a step of the group; codes of int4 and int5 also lose what rounding of scale and minimum takes away.
void test_errors_of_weights() {
    const std::size_t columns = 96;
    const std::vector<float> values = random_values(7 * columns, 1);
    for (const WeightFormat format : formats) {
        const Matrix matrix = quantized(format, values, columns);
        const std::vector<float> found = values_of(matrix);
        for (std::size_t g = 0; g < values.size(); g += 32) {
            float low = 0;
            float high = 0;
            for (std::size_t i = g; i < g + 32; ++i) {
                low = std::min(low, values[i]);
                high = std::max(high, values[i]);
            }
            const float largest = std::max(high, -low);
            const float bound = format == WeightFormat::int8   ? largest / 127 * 0.5F + largest * 0x1p-11F
                                : format == WeightFormat::int4 ? (high - low) / 13.5F
                                                               : (high - low) / 27.5F;
            for (std::size_t i = g; i < g + 32; ++i) CHECK(std::fabs(found[i] - values[i]) <= bound);
        }
        for (std::size_t k = 0; k < found.size(); ++k) {
            const double exact = weight_at(matrix, k / columns, k % columns);
            CHECK(std::fabs(found[k] - exact) <= 0x1p-22);
        }
    }
}

void test_int8_rounds_as_llama_cpp() {
    std::vector<float> values(32, 0.0F);
    values[0] = 127.0F;
    values[1] = 2.5F;
    values[2] = -2.5F;
    values[3] = 2.4F;
    const Matrix matrix = quantized(WeightFormat::int8, values, 32);
    CHECK(read<std::uint16_t>(matrix.view().data, 0) == 0x3C00);
    CHECK(read<std::int8_t>(matrix.view().data, 2) == 127);
    CHECK(read<std::int8_t>(matrix.view().data, 3) == 3);
    CHECK(read<std::int8_t>(matrix.view().data, 4) == -3);
    CHECK(read<std::int8_t>(matrix.view().data, 5) == 2);
}

double squared_error(const Matrix& matrix, const std::vector<float>& values,
                     const std::vector<float>& importance) {
    double sum = 0;
    for (std::size_t k = 0; k < values.size(); ++k) {
        const double error = weight_at(matrix, k / matrix.columns, k % matrix.columns) - values[k];
        sum += error * error * importance[k % matrix.columns];
    }
    return sum;
}

void test_importance_moves_the_error() {
    const std::size_t columns = 64;
    const std::vector<float> values = random_values(20 * columns, 2);
    std::vector<float> importance(columns);
    for (std::size_t c = 0; c < columns; ++c) importance[c] = c % 4 == 0 ? 100.0F : 1.0F;
    const Matrix plain = quantized(WeightFormat::int4, values, columns);
    Matrix weighted = empty_matrix(WeightFormat::int4, 20, columns);
    quantize(WeightFormat::int4, values, 20, columns, weighted.bytes(), importance);
    const std::vector<float> ones(columns, 1.0F);
    CHECK(squared_error(weighted, values, importance) < squared_error(plain, values, importance));
    CHECK(squared_error(plain, values, ones) < squared_error(weighted, values, ones));
}

// Weights that were in 5 bits with one scale and no minimum, as Q5_0 has them, come back but for the rounding of scales
// and minima to 8 bits.
void test_int5_finds_multiples_of_a_step() {
    std::mt19937 random(8);
    std::vector<float> values(40 * 64);
    for (std::size_t g = 0; g < values.size(); g += 32) {
        const int most = 5 + static_cast<int>(random() % 11);
        for (std::size_t i = g; i < g + 32; ++i)
            values[i] = 0.01F * static_cast<float>(
                                    static_cast<int>(random() % static_cast<unsigned>(17 + most)) - 16);
        values[g] = -0.16F;
        values[g + 1] = 0.01F * static_cast<float>(most);
    }
    const std::vector<float> found = values_of(quantized(WeightFormat::int5, values, 64));
    for (std::size_t k = 0; k < values.size(); ++k) CHECK(std::fabs(found[k] - values[k]) <= 0.01F / 16);
}

void test_special_groups() {
    std::vector<float> values(4 * 32);
    std::fill(values.begin() + 32, values.begin() + 64, 0.5F);
    std::fill(values.begin() + 64, values.begin() + 96, -0.5F);
    values[100] = -0x1p-140F;
    for (const WeightFormat format : formats) {
        const std::vector<float> found = values_of(quantized(format, values, 32));
        for (std::size_t k = 0; k < values.size(); ++k) CHECK(std::fabs(found[k] - values[k]) <= 0x1p-12F);
        for (std::size_t k = 0; k < 32; ++k) CHECK(found[k] == 0.0F);
    }
}

// Against the exact product: an error of x of scale / 2 on each element, and roundings of sums in float32.
void test_products_against_exact_ones() {
    const std::size_t columns = 160;
    const std::size_t inputs = 11;
    for (const WeightFormat format : formats) {
        const Matrix matrix = quantized(format, random_values(37 * columns, 3), columns);
        const std::vector<float> x = random_values(inputs * columns, 4);
        const std::vector<float> y = product(matrix, x, inputs);
        for (std::size_t r = 0; r < inputs; ++r)
            for (std::size_t n = 0; n < matrix.rows; ++n) {
                double exact = 0;
                double magnitudes = 0;
                double rounding = 0;
                for (std::size_t c = 0; c < columns; ++c) {
                    const double w = weight_at(matrix, n, c);
                    const double of_x = x[r * columns + c];
                    float largest = 0;
                    for (std::size_t i = c / 32 * 32; i < c / 32 * 32 + 32; ++i)
                        largest = std::max(largest, std::fabs(x[r * columns + i]));
                    exact += w * of_x;
                    // int4 and int5: the minimum and the rest are summed apart.
                    magnitudes +=
                        (std::fabs(w) + (format == WeightFormat::int8 ? 0.0 : 2.0)) * std::fabs(of_x);
                    rounding += std::fabs(w) * double{largest} / 65278 * 1.001;
                }
                CHECK(std::fabs(y[r * matrix.rows + n] - exact) <= rounding + magnitudes * 0x1p-20);
            }
    }
}

// Whatever the bytes and the inputs: the scalar kernels say what comes out.
void test_instruction_sets() {
    constexpr std::array<std::size_t, 7> widths = {32, 64, 224, 256, 288, 640, 1056};
    constexpr std::array<std::size_t, 8> counts = {0, 1, 2, 3, 5, 8, 9, 20};
    std::mt19937 random(5);
    for (const WeightFormat format : formats)
        for (const std::size_t columns : widths)
            for (const std::size_t inputs : counts) {
                const bool is_any = random() % 4 == 0;
                Matrix matrix = quantized(format, random_values(67 * columns, random(), 30), columns);
                if (is_any)
                    for (std::byte& byte : matrix.memory) byte = static_cast<std::byte>(random());
                std::vector<float> x = random_values(inputs * columns, random(), 60);
                if (is_any && inputs > 1) x[columns + random() % columns] = infinity;
                set_isa("scalar");
                const std::vector<float> y = product(matrix, x, inputs);
                const std::vector<float> values = values_of(matrix);
                for (const std::string& isa : isas()) {
                    set_isa(isa);
                    CHECK(is_same(product(matrix, x, inputs), y));
                    CHECK(is_same(product(matrix, x, inputs, 3), y));
                    CHECK(is_same(values_of(matrix), values));
                }
            }
}

// The largest sums there are: they must not saturate.
void test_extremes() {
    for (const std::string& isa : isas()) {
        set_isa(isa);
        Matrix matrix = empty_matrix(WeightFormat::int8, 1, 32);
        const std::span<std::byte> bytes = matrix.bytes();
        bytes[0] = std::byte{0};
        bytes[1] = std::byte{0x3C};  // a scale of 1
        for (std::size_t i = 2; i < 34; ++i) bytes[i] = std::byte{0x80};
        const std::vector<float> x(32, -32639.0F);
        CHECK(product(matrix, x, 1)[0] == 32.0F * 128.0F * 32639.0F);
        const std::vector<float> huge(32, std::numeric_limits<float>::max());
        CHECK(product(matrix, huge, 1)[0] == -infinity);
        const std::vector<float> tiny(32, std::numeric_limits<float>::denorm_min());
        CHECK(product(matrix, tiny, 1)[0] == 0.0F);
    }
}

void test_values_that_are_not_finite() {
    for (const std::string& isa : isas()) {
        set_isa(isa);
        for (const WeightFormat format : formats) {
            const Matrix matrix = quantized(format, random_values(5 * 96, 6), 96);
            for (const float value : {infinity, -infinity, std::numeric_limits<float>::quiet_NaN()})
                for (std::size_t place = 0; place < 96; ++place) {
                    std::vector<float> x(3 * 96, 1.0F);
                    x[96 + place] = value;
                    const std::vector<float> y = product(matrix, x, 3);
                    for (std::size_t k = 0; k < y.size(); ++k) {
                        const auto bits = std::bit_cast<std::uint32_t>(y[k]);
                        CHECK((k / 5 == 1) ? bits == 0x7FC00000 : std::isfinite(y[k]));
                    }
                }
        }
    }
}

void test_rows() {
    for (const WeightFormat format : formats) {
        const Matrix matrix = quantized(format, random_values(9 * 64, 7), 64);
        const std::vector<float> all = values_of(matrix);
        std::vector<float> some(3 * 64);
        dequantize(matrix.view(), 4, some);
        CHECK(std::equal(some.begin(), some.end(), all.begin() + 4 * 64));
        const std::array<std::int64_t, 3> indices = {8, 0, 8};
        dequantize_rows(matrix.view(), indices, some, 2);
        for (std::size_t k = 0; k < 3; ++k)
            CHECK(std::equal(some.begin() + static_cast<std::ptrdiff_t>(k * 64),
                             some.begin() + static_cast<std::ptrdiff_t>(k * 64 + 64),
                             all.begin() + static_cast<std::ptrdiff_t>(indices[k] * 64)));
        CHECK_THROWS(dequantize(matrix.view(), 7, some), std::invalid_argument,
                     "rows 7 to 10 are not within the 9 rows");
        const std::array<std::int64_t, 3> wrong = {0, 9, 1};
        CHECK_THROWS(dequantize_rows(matrix.view(), wrong, some), std::invalid_argument,
                     "row 9 is not one of the 9 rows");
        some.resize(70);
        CHECK_THROWS(dequantize(matrix.view(), 0, some), std::invalid_argument,
                     "out has 70 values, the shape needs 64");
        CHECK_THROWS(dequantize_rows(matrix.view(), indices, some), std::invalid_argument,
                     "out has 70 values, 3 rows of 64 columns are to be written");
    }
}

void test_refusals() {
    std::vector<float> values(64, 1.0F);
    std::vector<std::byte> out(68);
    values[40] = std::numeric_limits<float>::quiet_NaN();
    CHECK_THROWS(quantize(WeightFormat::int8, values, 2, 32, out), std::invalid_argument,
                 "row 1 has a weight that is not finite");
    values[40] = 8.33e6F;
    CHECK_THROWS(quantize(WeightFormat::int8, values, 2, 32, out), std::invalid_argument,
                 "row 1 has a weight that int8 cannot store: the largest is 8.32e+06");
    values[40] = 0;
    CHECK_THROWS(quantize(WeightFormat::int8, values, 1, 32, out), std::invalid_argument,
                 "out has 68 bytes, the shape needs 34");
    CHECK_THROWS(quantize(WeightFormat::int8, std::span(values).first(40), 2, 32, out), std::invalid_argument,
                 "values has 40 values, the shape needs 64");
    const std::vector<float> negative(32, -1.0F);
    CHECK_THROWS(quantize(WeightFormat::int8, values, 2, 32, out, negative), std::invalid_argument,
                 "importance must be finite and at least 0");
    CHECK_THROWS(quantize(WeightFormat::int8, values, 2, 32, out, std::span(negative).first(3)),
                 std::invalid_argument, "importance has 3 values, the shape needs 32");

    const Matrix matrix = quantized(WeightFormat::int8, values, 32);
    std::vector<float> y(2);
    std::vector<std::byte> scratch(product_scratch_bytes(1, 32));
    const std::span<const float> x = std::span(values).first(32);
    CHECK_THROWS(multiply(matrix.view(), std::span(values).first(31), 1, y, scratch), std::invalid_argument,
                 "x has 31 values, the shape needs 32");
    CHECK_THROWS(multiply(matrix.view(), x, 1, std::span(y).first(1), scratch), std::invalid_argument,
                 "y has 1 values, the shape needs 2");
    CHECK_THROWS(multiply(matrix.view(), x, 1, y, std::span(scratch).first(10)), std::invalid_argument,
                 "scratch has 10 bytes, 192 are needed");
    CHECK_THROWS(multiply(matrix.view(), x, 1, y, scratch, 0), std::invalid_argument, "threads is 0");
    WeightMatrix shorter = matrix.view();
    shorter.data = shorter.data.first(60);
    CHECK_THROWS(multiply(shorter, x, 1, y, scratch), std::invalid_argument,
                 "data has 60 bytes, the shape needs 68");
    CHECK_THROWS(multiply(matrix.view(), x, 1, y, scratch, Execution(1, [] { return true; })), StoppedError,
                 "stopped");
}

}  // namespace

int main() {
    test_sizes();
    test_errors_of_weights();
    test_int8_rounds_as_llama_cpp();
    test_importance_moves_the_error();
    test_int5_finds_multiples_of_a_step();
    test_special_groups();
    test_products_against_exact_ones();
    test_instruction_sets();
    test_extremes();
    test_values_that_are_not_finite();
    test_rows();
    test_refusals();
    return failures;
}
