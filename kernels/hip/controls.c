// What AMD's device library (ocml.bc) asks of a program: strict IEEE arithmetic, on the GPU that -D names.

#define CONTROL const __attribute__((address_space(4), visibility("protected")))

CONTROL int __oclc_ISA_version = FRONTIER_ISA;
CONTROL unsigned char __oclc_wavefrontsize64 = FRONTIER_WAVE == 64;
CONTROL unsigned char __oclc_finite_only_opt = 0;
CONTROL unsigned char __oclc_unsafe_math_opt = 0;
CONTROL unsigned char __oclc_daz_opt = 0;
CONTROL unsigned char __oclc_correctly_rounded_sqrt32 = 1;
