// Any processor, arm64 among them: included once, inside the namespace of that path.

constexpr size_t kLanes = 4;
typedef float Lanes __attribute__((vector_size(16), aligned(4), may_alias));
typedef double Halves __attribute__((vector_size(16), aligned(8), may_alias));

inline Lanes all(float value) { return Lanes{value, value, value, value}; }
inline Lanes load(const float* x) { return *(const Lanes*)x; }
inline void store(float* x, Lanes value) { *(Lanes*)x = value; }
inline void stream(float* x, Lanes value) { store(x, value); }
inline void end_stream() {}
inline Lanes widen(const int16_t* n) { return Lanes{(float)n[0], (float)n[1], (float)n[2], (float)n[3]}; }

// bfloat16, rounded to the nearest, ties to even; a NaN stays one.
inline void narrow(uint16_t* x, Lanes value) {
    for (size_t i = 0; i < kLanes; ++i) {
        const float of = value[i];
        uint32_t bits;
        std::memcpy(&bits, &of, sizeof bits);
        x[i] = of != of ? 0x7fc0 : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
}

inline Lanes load_first(const float* x, size_t count) {
    Lanes value = {};
    for (size_t i = 0; i < count; ++i) value[i] = x[i];
    return value;
}

inline void store_first(float* x, Lanes value, size_t count) {
    for (size_t i = 0; i < count; ++i) x[i] = value[i];
}

// Rounded once, as the other paths and torch do: a product of floats is exact in double. The sum is rounded in double
// first, which differs from one rounding only where that is a tie in float.
inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) {
    Lanes sum;
    for (size_t i = 0; i < kLanes; ++i) sum[i] = (float)((double)a[i] * b[i] + c[i]);
    return sum;
}

typedef int32_t Mask __attribute__((vector_size(16)));
inline Mask reaches(Lanes a, Lanes b) { return (Mask)(a >= b); }
inline Lanes where(Mask mask, Lanes a) { return (Lanes)((Mask)a & mask); }
inline Lanes unless(Mask mask, Lanes a) { return (Lanes)((Mask)a & ~mask); }
inline Lanes at_least_zero(Lanes a) { return where((Mask)(a > Lanes{}), a); }
inline Lanes magnitude(Lanes a) { return (Lanes)((Mask)a & 0x7fffffff); }

inline Halves low_half(Lanes a) { return Halves{a[0], a[1]}; }
inline Halves high_half(Lanes a) { return Halves{a[2], a[3]}; }
inline double sum_of(Halves a) { return a[0] + a[1]; }
inline double sum_of(Lanes a) { return sum_of(low_half(a) + high_half(a)); }
