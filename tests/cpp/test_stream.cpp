// The stream coder: every symbol is recovered, the size is near the entropy, hostile bytes are rejected.
#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>

#include "check.hpp"
#include "codec/entropy/stream.hpp"
#include "codec/kernels/dispatch.hpp"
#include "orbitsplit/codec.hpp"
#include "orbitsplit/error.hpp"

using namespace orbitsplit;
using stream::SymbolTable;

namespace {

using Bytes = std::vector<std::uint8_t>;
using Counts = std::array<std::uint64_t, 256>;

Counts counts_of(const Bytes& symbols) {
    Counts counts{};
    for (const std::uint8_t symbol : symbols) ++counts[symbol];
    return counts;
}

Bytes normals(std::size_t count, double deviation, unsigned seed = 1) {
    std::mt19937 random(seed);
    std::normal_distribution<double> normal(0, deviation);
    Bytes symbols(count);
    for (std::uint8_t& symbol : symbols)
        symbol = static_cast<std::uint8_t>(static_cast<int>(std::lround(normal(random))));
    return symbols;
}

// The symbols of a matrix in the order of the coder, channel by channel within each group.
std::vector<std::byte> encode(const stream::Tables& tables, const Bytes& symbols, std::size_t rows,
                              std::size_t channels) {
    Arena memory;
    stream::Encoder encoder(tables, rows, channels, memory);
    Bytes padded = symbols;
    padded.resize(symbols.size() + rans::slack_bytes);
    for (std::size_t group = (rows + 63) / 64; group-- > 0;)
        encoder.add_group(group, padded.data() + group * 64 * channels);
    std::vector<std::byte> bytes(encoder.size());
    encoder.finish(bytes.data());
    CHECK(bytes.size() <= stream::bound(rows, channels));
    return bytes;
}

Bytes decode(const stream::Tables& tables, std::span<const std::byte> bytes, std::size_t rows,
             std::size_t channels) {
    Arena memory;
    stream::Decoder decoder(tables, bytes, bytes.size(), rows, channels, memory);
    Bytes symbols(rows * channels + rans::slack_bytes);
    for (std::size_t group = 0; group < (rows + 63) / 64; ++group)
        decoder.next_group(group, symbols.data() + group * 64 * channels);
    decoder.finish();
    symbols.resize(rows * channels);
    return symbols;
}

// Tables for channels of increasingly wide distributions, including escapes.
stream::Tables mixed_tables(std::size_t channels) {
    std::vector<SymbolTable> tables;
    for (const double deviation : {0.3, 1.0, 4.0, 30.0})
        tables.push_back(stream::build_table(counts_of(normals(20000, deviation))));
    std::vector<std::uint8_t> table_of_channel(channels);
    for (std::size_t c = 0; c < channels; ++c) table_of_channel[c] = static_cast<std::uint8_t>(c * 7 % 4);
    return stream::Tables(tables, table_of_channel);
}

void test_lanes() {
    CHECK(stream::lanes_of(1, 640) == 4 && stream::lanes_of(1, 8192) == 64 && stream::lanes_of(1, 1) == 1);
    CHECK(stream::lanes_of(1, 1 << 20) == 64 && stream::lanes_of(3, 100000) == 48);
    CHECK(stream::lanes_of(63, 640) == 63 && stream::lanes_of(64, 1) == 64 && stream::lanes_of(256, 1) == 64);
    CHECK(stream::lanes_of(32, 255) == 32 && stream::lanes_of(32, 256) == 64 && stream::lanes_of(0, 5) == 0);
}

void test_round_trips() {
    for (const std::size_t rows : {0UL, 1UL, 2UL, 7UL, 31UL, 63UL, 64UL, 65UL, 100UL, 255UL, 256UL})
        for (const std::size_t channels : {1UL, 63UL, 64UL, 65UL, 640UL, 1031UL, 8192UL}) {
            if (rows * channels > 600000) continue;
            const Bytes symbols = normals(rows * channels, 1.5, static_cast<unsigned>(rows + channels));
            const stream::Tables one(stream::build_table(counts_of(symbols)));
            CHECK(decode(one, encode(one, symbols, rows, channels), rows, channels) == symbols);
            const stream::Tables several = mixed_tables(channels);
            CHECK(decode(several, encode(several, symbols, rows, channels), rows, channels) == symbols);
        }
}

// Every number of lanes, with one table and with several in a step.
void test_bytes_of_scalar_kernels() {
    const std::string chosen(isa());
    for (const std::size_t rows : {1UL, 3UL, 8UL, 13UL, 20UL, 32UL, 63UL, 64UL, 77UL, 150UL})
        for (const std::size_t channels : {1UL, 33UL, 500UL, 2100UL, 9000UL}) {
            if (rows * channels > 100000) continue;
            const Bytes symbols = normals(rows * channels, 2.5, static_cast<unsigned>(rows + channels));
            const std::vector<stream::Tables> all = {stream::Tables(stream::build_table(counts_of(symbols))),
                                                     mixed_tables(channels)};
            for (const stream::Tables& tables : all) {
                const std::vector<std::byte> bytes = encode(tables, symbols, rows, channels);
                set_isa("scalar");
                CHECK(encode(tables, symbols, rows, channels) == bytes);
                set_isa(chosen);
            }
        }
}

// Only symbols without a frequency, only symbols with one, and all symbols equal.
void test_adversarial_symbols() {
    Bytes every(256 * 40);
    std::iota(every.begin(), every.end(), std::uint8_t{0});
    Counts alike{};
    alike[7] = 5;
    Counts heavy{};
    heavy[255] = 1'000'000'000'000;
    heavy[0] = 1;
    // As many coded symbols as a compact table holds, and one more.
    Counts fitting{};
    for (unsigned place = 0; place < 63; ++place) fitting[place * 4 + 1] = 10;
    Counts spilling = fitting;
    spilling[255] = 10;
    for (const Counts& counts : {counts_of(every), alike, heavy, fitting, spilling, Counts{}}) {
        const SymbolTable table = stream::build_table(counts);
        CHECK(stream::is_valid(table));
        const stream::Tables tables(table);
        CHECK(tables.steps(0, 1, 1, 1).are_compact == (counts != counts_of(every) && counts != spilling));
        for (const Bytes& symbols : {every, Bytes(10240, 7), Bytes(10240, 0), Bytes(10240, 255)})
            for (const std::size_t rows : {1UL, 8UL, 64UL, 160UL})
                CHECK(decode(tables, encode(tables, symbols, rows, 10240 / rows), rows, 10240 / rows) ==
                      symbols);
    }
}

// Every frequency with every state of the coder's interval, against plain division.
void test_every_division() {
    for (unsigned frequency = 1; frequency < 256; ++frequency) {
        SymbolTable table{.escape = static_cast<std::uint8_t>(256 - frequency)};
        table.frequency[9] = static_cast<std::uint8_t>(frequency);
        const stream::Tables tables(table);
        const std::uint8_t symbol = 9;
        for (unsigned state = 256; state < 65536; state += 7) {
            std::array<std::uint8_t, 200> memory{};
            rans::Encoder encoder{.state = {}, .next = memory.data() + 100, .escape = memory.data() + 200};
            encoder.state[0] = static_cast<std::uint16_t>(state);
            Bytes codes(65, symbol);
            const std::uint8_t* const code = codes.data();
            rans::Encoder* const one = &encoder;
            kernels::active().rans->encode(tables.steps(0, 1, 1, 1), 1, &code, &one);
            const unsigned x = state >= frequency << 8 ? state >> 8 : state;
            CHECK(encoder.state[0] == (x / frequency << 8) + x % frequency + 256 - frequency);
        }
    }
}

void test_size_is_near_the_entropy() {
    for (const double deviation : {0.5, 0.8, 1.2, 2.0, 4.0, 12.0}) {
        const Bytes symbols = normals(256 * 2048, deviation);
        const Counts counts = counts_of(symbols);
        const SymbolTable table = stream::build_table(counts);
        double ideal = 0;
        double escapes = 0;
        double entropy = 0;
        for (unsigned s = 0; s < 256; ++s) {
            const unsigned frequency = table.frequency[s] == 0 ? table.escape : table.frequency[s];
            const auto count = static_cast<double>(counts[s]);
            ideal -= count * std::log2(frequency / 256.0) / 8;
            if (table.frequency[s] == 0) escapes += count;
            if (counts[s] > 0) entropy -= count * std::log2(count / (256.0 * 2048)) / 8;
        }
        const auto size = static_cast<double>(encode(stream::Tables(table), symbols, 256, 2048).size());
        CHECK(size < 1.01 * (ideal + escapes));
        CHECK(size < 1.02 * entropy);
    }
}

// For each number of interleaved streams: the bytes equal those of streams encoded separately, and every symbol is
// recovered.
void test_streams_together() {
    for (const std::size_t rows : {1UL, 40UL, 64UL, 200UL}) {
        const std::size_t channels = 300;
        const stream::Tables tables = mixed_tables(channels);
        for (std::size_t count = 1; count <= rans::max_together; ++count) {
            Arena memory;
            std::vector<Bytes> symbols;
            std::vector<std::vector<std::byte>> bytes;
            std::vector<std::unique_ptr<stream::Encoder>> encoders;
            std::vector<std::unique_ptr<stream::Decoder>> decoders;
            std::vector<stream::Encoder*> encoding;
            std::vector<stream::Decoder*> decoding;
            for (unsigned k = 0; k < count; ++k) {
                symbols.push_back(normals(rows * channels, 1 + k, k));
                bytes.push_back(encode(tables, symbols[k], rows, channels));
                symbols[k].resize(rows * channels + 64);
                encoders.push_back(std::make_unique<stream::Encoder>(tables, rows, channels, memory));
                encoding.push_back(encoders[k].get());
            }
            for (std::size_t group = (rows + 63) / 64; group-- > 0;) {
                std::vector<const std::uint8_t*> codes;
                for (const Bytes& one : symbols) codes.push_back(one.data() + group * 64 * channels);
                stream::Encoder::add_group(group, encoding, codes.data());
            }
            for (std::size_t k = 0; k < count; ++k) {
                std::vector<std::byte> together(encoders[k]->size());
                encoders[k]->finish(together.data());
                CHECK(together == bytes[k]);
                decoders.push_back(std::make_unique<stream::Decoder>(tables, bytes[k], bytes[k].size(), rows,
                                                                     channels, memory));
                decoding.push_back(decoders[k].get());
            }
            std::vector<Bytes> out(count, Bytes(rows * channels + 64));
            for (std::size_t group = 0; group < (rows + 63) / 64; ++group) {
                std::vector<std::uint8_t*> codes;
                for (Bytes& one : out) codes.push_back(one.data() + group * 64 * channels);
                stream::Decoder::next_group(group, decoding, codes.data());
            }
            for (std::size_t k = 0; k < count; ++k) {
                decoders[k]->finish();
                CHECK(std::equal(out[k].begin(), out[k].end() - 64, symbols[k].begin()));
            }
        }
    }
}

// Any bytes yield symbols or CorruptFrameError, and never the right symbols. Truncated or random bytes are always
// rejected; a change of a byte that is an escaped symbol is only found by the frame's checksum.
void test_hostile_bytes() {
    std::mt19937 random(4);
    for (const std::size_t rows : {1UL, 5UL, 64UL, 130UL}) {
        const std::size_t channels = 200;
        const stream::Tables tables = mixed_tables(channels);
        const Bytes symbols = normals(rows * channels, 2);
        const std::vector<std::byte> good = encode(tables, symbols, rows, channels);
        int refused = 0;
        for (int trial = 0; trial < 300; ++trial) {
            std::vector<std::byte> bad = good;
            if (trial % 3 == 0) bad.resize(random() % good.size());
            if (trial % 3 == 1) bad[random() % bad.size()] ^= static_cast<std::byte>(1 + random() % 255);
            if (trial % 3 == 2) std::ranges::generate(bad, [&] { return static_cast<std::byte>(random()); });
            try {
                CHECK(decode(tables, bad, rows, channels) != symbols);
            } catch (const CorruptFrameError&) {
                ++refused;
            }
        }
        CHECK(refused >= 200);
        std::vector<std::byte> longer = good;
        longer.push_back(std::byte{0});
        CHECK_THROWS(decode(tables, longer, rows, channels), CorruptFrameError, "frame has a stream");
        CHECK_THROWS(decode(tables, {}, rows, channels), CorruptFrameError, "without a count");
    }
}

void test_tables_in_bytes() {
    for (const double deviation : {0.1, 1.0, 20.0, 200.0}) {
        const SymbolTable table = stream::build_table(counts_of(normals(5000, deviation)));
        std::vector<std::byte> bytes(stream::largest_table_bytes);
        bytes.resize(stream::write_table(table, bytes.data()));
        bytes.push_back(std::byte{77});
        std::span<const std::byte> rest = bytes;
        CHECK(stream::take_table(rest) == table && rest.size() == 1);
        for (std::size_t size = 0; size + 1 < bytes.size(); ++size) {
            rest = std::span(bytes).first(size);
            CHECK_THROWS(stream::take_table(rest), CorruptFrameError, "table of symbols");
        }
        for (std::size_t i = 0; i + 1 < bytes.size(); ++i) {
            std::vector<std::byte> bad = bytes;
            bad[i] ^= std::byte{1};
            rest = bad;
            if (i >= 2) CHECK_THROWS(stream::take_table(rest), CorruptFrameError, "table of symbols");
        }
    }
}

void test_refusals() {
    SymbolTable table = stream::build_table(Counts{});
    const std::uint8_t channel = 1;
    CHECK_THROWS(stream::Tables(std::span(&table, 1), std::span(&channel, 1)), std::invalid_argument,
                 "a channel has table 1, there are 1");
    const std::vector<SymbolTable> many(65, table);
    CHECK_THROWS(stream::Tables(many, {}), std::invalid_argument, "there are 65 tables");
    table.escape = 0;
    CHECK_THROWS(stream::Tables{table}, std::invalid_argument, "must add up to 256");
}

}  // namespace

int main() {
    test_lanes();
    test_tables_in_bytes();
    test_refusals();
    for (const std::string& name : isas()) {
        set_isa(name);
        test_round_trips();
        test_bytes_of_scalar_kernels();
        test_adversarial_symbols();
        test_every_division();
        test_size_is_near_the_entropy();
        test_streams_together();
        test_hostile_bytes();
    }
    return failures;
}
